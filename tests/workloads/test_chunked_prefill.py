"""Traces and the chunked-prefill scheduler."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podrt.workloads.chunked_prefill import HybridStep, Request, read_trace, sample_trace, schedule


def at_once(*lengths: tuple[int, int]) -> list[Request]:
    return [Request(0.0, prompt, output) for prompt, output in lengths]


def shapes(steps: list[HybridStep]) -> list[list[tuple[int, int, int]]]:
    """(request, q_len, kv_len) of every step."""
    return [
        list(zip(step.request_ids, step.q_lens.tolist(), step.kv_lens.tolist(), strict=True))
        for step in steps
    ]


def test_decodes_first_then_chunks_fill_the_budget() -> None:
    steps = list(schedule(at_once((5, 3), (6, 2), (2, 1)), token_budget=8))
    assert shapes(steps) == [
        [(0, 5, 5), (1, 3, 3)],
        [(0, 1, 6), (1, 3, 6), (2, 2, 2)],
        [(0, 1, 7), (1, 1, 7)],
    ]
    assert [step.num_decodes for step in steps] == [0, 1, 2]
    assert [step.num_prefills for step in steps] == [2, 2, 0]
    assert [step.num_prefill_tokens for step in steps] == [8, 5, 0]
    assert [step.total_tokens for step in steps] == [8, 6, 2]


def test_step_arrays_are_what_a_batch_takes() -> None:
    step = next(schedule(at_once((5, 3), (6, 2)), token_budget=8))
    assert step.qo_indptr.tolist() == [0, 5, 8]
    assert {step.qo_indptr.dtype, step.q_lens.dtype, step.kv_lens.dtype} == {np.dtype(np.int32)}


def test_last_chunk_yields_the_first_output_token() -> None:
    assert len(list(schedule(at_once((10, 1)), token_budget=4))) == 3
    assert len(list(schedule(at_once((10, 0)), token_budget=4))) == 3
    assert len(list(schedule(at_once((10, 4)), token_budget=4))) == 6


def test_requests_join_after_they_arrive() -> None:
    requests = [Request(1.0, 2, 1), Request(0.05, 2, 3)]
    steps = list(schedule(requests, token_budget=8, iteration_time_s=0.5))
    assert [step.request_ids for step in steps] == [(1,), (1,), (1, 0)]
    np.testing.assert_allclose([step.start_s for step in steps], [0.05, 0.55, 1.05])


def test_idle_clock_jumps_to_the_next_arrival() -> None:
    steps = list(schedule([Request(0.0, 1, 1), Request(9.0, 1, 1)], token_budget=4))
    assert [step.start_s for step in steps] == [0.0, 9.0]


def test_max_batch_size_bounds_the_running_requests() -> None:
    steps = list(schedule(at_once(*[(2, 4)] * 5), token_budget=64, max_batch_size=2))
    assert max(len(step.request_ids) for step in steps) == 2


def test_kv_room_delays_a_request_until_it_fits() -> None:
    steps = list(schedule(at_once((4, 3), (4, 1), (1, 1)), token_budget=64, max_kv_tokens=8))
    assert [step.request_ids for step in steps] == [(0,), (0,), (0,), (1, 2)]


def test_budget_of_one_serves_one_request_after_the_other() -> None:
    steps = list(schedule(at_once((2, 2), (1, 1)), token_budget=1))
    assert shapes(steps) == [[(0, 1, 1)], [(0, 1, 2)], [(0, 1, 3)], [(1, 1, 1)]]


def test_no_requests_make_no_steps() -> None:
    assert list(schedule([], token_budget=4)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_budget": 0}, "token_budget is 0"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"max_kv_tokens": -1}, "max_kv_tokens is -1"),
        ({"max_kv_tokens": 11}, r"requests\[0\] grows to 12 tokens; max_kv_tokens=11"),
        ({"iteration_time_s": 0.0}, "iteration_time_s is 0.0"),
        ({"iteration_time_s": float("nan")}, "iteration_time_s is nan"),
    ],
)
def test_limits_are_checked_before_the_first_step(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(at_once((10, 3)), **({"token_budget": 4} | changes))  # type: ignore[arg-type]


requests_strategy = st.lists(
    st.builds(
        Request,
        arrival_s=st.floats(0, 2),
        prompt_tokens=st.integers(1, 40),
        output_tokens=st.integers(0, 12),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=150)
@given(
    requests=requests_strategy,
    token_budget=st.integers(1, 50),
    max_batch_size=st.none() | st.integers(1, 6),
    max_kv_tokens=st.none() | st.integers(51, 120),
)
def test_every_token_is_processed_once_and_in_order(
    requests: list[Request],
    token_budget: int,
    max_batch_size: int | None,
    max_kv_tokens: int | None,
) -> None:
    kv_len: dict[int, int] = defaultdict(int)
    steps = schedule(
        requests, token_budget, max_batch_size=max_batch_size, max_kv_tokens=max_kv_tokens
    )
    for step in steps:
        assert 1 <= step.total_tokens <= token_budget
        for position, (number, q_len, kv) in enumerate(shapes([step])[0]):
            request = requests[number]
            assert q_len >= 1
            assert request.arrival_s <= step.start_s
            assert (position < step.num_decodes) == (kv_len[number] >= request.prompt_tokens)
            assert position >= step.num_decodes or q_len == 1
            kv_len[number] += q_len
            assert kv == kv_len[number]
    assert dict(kv_len) == {i: request.kv_tokens for i, request in enumerate(requests)}


@settings(deadline=None, max_examples=100)
@given(
    requests=requests_strategy,
    token_budget=st.integers(1, 50),
    max_batch_size=st.integers(1, 6),
    max_kv_tokens=st.integers(51, 120),
)
def test_nobody_stalls_is_overtaken_or_exceeds_the_limits(
    requests: list[Request], token_budget: int, max_batch_size: int, max_kv_tokens: int
) -> None:
    steps = list(
        schedule(requests, token_budget, max_batch_size=max_batch_size, max_kv_tokens=max_kv_tokens)
    )
    present: dict[int, list[int]] = defaultdict(list)
    for number, step in enumerate(steps):
        assert len(step.request_ids) <= max_batch_size
        assert step.kv_lens.sum() <= max_kv_tokens
        for request_id in step.request_ids:
            present[request_id].append(number)
    for numbers in present.values():  # once started, a request is in every step until it ends
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
    starts = [present[i][0] for i in sorted(present, key=lambda i: requests[i].arrival_s)]
    assert starts == sorted(starts)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_read_timestamps_from_the_earliest(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-01 10:00:01.2500000,12,3\n"
        "2024-05-01 09:59:59.9960010,100,7\n"
    )
    assert read_trace(write(tmp_path, text)) == [Request(1.253999, 12, 3), Request(0.0, 100, 7)]


def test_read_timestamps_with_a_zone(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-01 10:00:00+00:00,1,1\n2024-05-01 12:00:02+02:00,2,2\n"
    )
    assert [request.arrival_s for request in read_trace(write(tmp_path, text))] == [0.0, 2.0]


def test_read_lengths_alone(tmp_path: Path) -> None:
    text = (
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n7564.0,192.0,7756.0,39\n"
    )
    assert read_trace(str(write(tmp_path, text))) == [Request(0.0, 7564, 192)]


def test_read_own_format_with_byte_order_mark_and_more_columns(tmp_path: Path) -> None:
    text = "\ufeffname,arrival_s,prompt_tokens,output_tokens\na,1.5,10,0\n\nb,0.5,11,2\n"
    assert read_trace(write(tmp_path, text)) == [Request(1.5, 10, 0), Request(0.5, 11, 2)]


@pytest.mark.parametrize(
    "header", ["arrival_s,prompt_tokens,output_tokens", "TIMESTAMP,ContextTokens,GeneratedTokens"]
)
def test_read_no_rows(tmp_path: Path, header: str) -> None:
    assert read_trace(write(tmp_path, header + "\n")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace.csv:1: columns are (); expected (arrival_s, "),
        ("a,b\n1,2\n", "trace.csv:1: columns are (a, b); expected (arrival_s, "),
        (
            "num_prefill_tokens,num_decode_tokens\n3,1\n0,1\n",
            "trace.csv:3: num_prefill_tokens is '0'",
        ),
        (
            "num_prefill_tokens,num_decode_tokens\n3,1.5\n",
            "trace.csv:2: num_decode_tokens is '1.5'",
        ),
        ("num_prefill_tokens,num_decode_tokens\n3,inf\n", "num_decode_tokens is 'inf'"),
        ("num_prefill_tokens,num_decode_tokens\n3\n", "trace.csv:2: num_decode_tokens is missing"),
        ("arrival_s,prompt_tokens,output_tokens\n-1,3,1\n", "trace.csv:2: arrival_s is '-1'"),
        (
            "arrival_s,prompt_tokens,output_tokens\nnan,3,1\n",
            "arrival_s is 'nan'; expected seconds",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\nnow,3,1\n",
            "TIMESTAMP is 'now'; expected a time",
        ),
    ],
)
def test_bad_traces_name_file_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_trace(write(tmp_path, text))


def test_request_refuses_impossible_values() -> None:
    for values, name in (((-1.0, 1, 1), "arrival_s"), ((0.0, 0, 1), "prompt_tokens")):
        with pytest.raises(ValueError, match=name):
            Request(*values)
    with pytest.raises(ValueError, match="output_tokens is -1"):
        Request(0.0, 1, -1)


def test_sample_trace_serves_hybrid_steps() -> None:
    trace = sample_trace()
    assert len(trace) == 200
    assert all(request.prompt_tokens <= 8192 for request in trace)
    steps = list(schedule(trace, token_budget=1024, max_batch_size=64))
    assert sum(step.num_decodes > 0 and step.num_prefills > 0 for step in steps) > 100
