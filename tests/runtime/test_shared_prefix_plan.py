"""Plans of batches that share prefixes: what is launched, and what stays after an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, TorchTensor
from runtime_support import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LIMITS,
    PAGE_SIZE,
    STREAM,
    launched,
    layer,
    plan,
    table_of,
    tensors,
)

import podrt
from podrt.errors import UnsupportedConfigError
from podrt.kernels.joins import JoinConfig
from podrt.runtime.session import Session

FEW: Any = ([0, 1, 2], [500, 600])
MORE: Any = ([0, 1, 2, 3], [700, 800, 900])
#: Prefill beside decodes of which two share 320 keys.
MIXED: Any = ([0, 40, 41, 42], [90, 500, 600])
PREFIX = (1, 3, 320)


def shared_layer(**options: Any) -> podrt.SharedPrefixAttention:
    given = {"page_size": PAGE_SIZE, "dtype": "float16"} | options
    return podrt.SharedPrefixAttention(HEADS, KV_HEADS, HEAD_DIM, **given)


def test_where_a_plan_fails_the_batch_before_stays_whole(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = shared_layer()
    given = {"block_table": table_of(2), "stream": STREAM}
    attention.plan(*FEW, shared_prefixes=[(0, 2, 320)], **given)

    def fails(*arguments: Any) -> Any:
        raise UnsupportedConfigError("no such kernel")

    with monkeypatch.context() as patched:
        patched.setattr(Session, "plan", fails)
        with pytest.raises(UnsupportedConfigError, match="no such kernel"):
            attention.plan(*MORE, block_table=table_of(3), shared_prefixes=[(0, 3, 640)])
    assert attention.shared_prefixes == ((0, 2, 320),)
    attention.plan(*MORE, block_table=table_of(3), shared_prefixes=[(0, 3, 640)], stream=STREAM)
    assert attention.shared_prefixes == ((0, 3, 640),)


def joins_of(gpu: FakeGpu, launch: Any) -> tuple[np.ndarray, int]:
    """What a launch finds at the address of the joins; and how many tokens are to be joined."""
    header, count = launch.header, int(launch.header["num_joined_tokens"])
    memory = gpu.read(int(header["joins"]), 32 * count) if count else b""
    return np.frombuffer(memory, np.int32).reshape(-1, 8), count


def test_a_second_launch_joins_what_the_first_has_left(gpu: FakeGpu) -> None:
    attention = layer()
    for _ in range(2):  # the second run goes the short way
        plan(attention, MIXED, shared_prefixes=[PREFIX])
        for _ in range(2):
            attention.run(**tensors(42), stream=STREAM)
            *first, last = launched(gpu)
            assert first
            assert isinstance(last.variant, JoinConfig)
            tokens, count = joins_of(gpu, last)
            assert (count, tokens[:, 0].tolist()) == (2, [40, 41])
            assert (last.arguments["out"], last.grid) == (1 << 43, 2)
    plan(attention, MIXED)
    attention.run(**tensors(42), stream=STREAM)
    assert not any(isinstance(each.variant, JoinConfig) for each in launched(gpu))


def test_graphs_join_whatever_shares_a_prefix(gpu: FakeGpu) -> None:
    attention = layer()
    attention.reserve(**LIMITS, max_prefixes=2, stream=STREAM)
    gpu.capturing[STREAM] = 1
    attention.run(**tensors(320), stream=STREAM, decodes_only=True)
    del gpu.capturing[STREAM]
    for prefixes, joined in (([PREFIX], [40, 41]), (None, []), ([PREFIX], [40, 41])):
        plan(attention, MIXED, shared_prefixes=prefixes)
        gpu.finish()
        gpu.launches.clear()
        gpu.replay(1, STREAM)
        *first, last = launched(gpu)
        assert len(first) == 1
        assert first[0].variant.form == "pod"
        assert isinstance(last.variant, JoinConfig)
        tokens, _ = joins_of(gpu, last)
        assert tokens[:, 0].tolist() == joined


def test_prefixes_beyond_the_limits_are_refused(gpu: FakeGpu) -> None:
    attention = layer()
    attention.reserve(**LIMITS, stream=STREAM)
    with pytest.raises(ValueError, match=r"prefixes=1, more than the max_prefixes=0"):
        plan(attention, MIXED, shared_prefixes=[PREFIX])
    attention.reserve(**LIMITS, max_prefixes=1, stream=STREAM)
    chunks: Any = ([0, 40, 80], [400, 400])
    with pytest.raises(ValueError, match="requests 0 to 1 have up to 40 new tokens, more than the"):
        plan(attention, chunks, shared_prefixes=[(0, 2, 320)])
    long: Any = ([0, 1, 2], [3100, 3200])
    for prefixes in (None, [(0, 2, 320)]):
        with pytest.raises(ValueError, match="max_kv_len=3000"):
            plan(attention, long, shared_prefixes=prefixes)
    plan(attention, MIXED, shared_prefixes=[PREFIX])


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"window_left": 100}, {}, "the layer has window_left=100"),
        ({"tree_mask": True}, {}, "the layer has tree_mask"),
        ({"deterministic": True}, {}, "with deterministic=True"),
        ({}, {"shared_prefixes": "all"}, 'allowed are "find", prefixes, or None'),
        ({}, {"shared_prefixes": "find"}, "page numbers are compared in host memory"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    gpu: FakeGpu, options: Any, given: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(layer(**options), MIXED, **{"shared_prefixes": [PREFIX]} | given)


def test_limits_of_prefixes_are_whole_numbers() -> None:
    for value, error in ((None, TypeError), (0.0, TypeError), (-1, ValueError)):
        with pytest.raises(error, match="max_prefixes"):
            layer().workspace_bytes(**LIMITS, max_prefixes=value)


@pytest.mark.parametrize(
    ("wrong", "named"), [((0, 2), 0), ((2, 25), 2), ((1, 3), 1)], ids=["other", "own", "shared"]
)
def test_wrong_pages_are_named_as_they_were_given(
    gpu: FakeGpu, wrong: tuple[int, int], named: int
) -> None:
    attention, table = layer(), np.zeros((3, 40), np.int32)
    table[wrong] = -5
    attention.plan(*MIXED, block_table=table, shared_prefixes=[PREFIX], stream=STREAM)
    with pytest.raises(ValueError, match=f"page {wrong[1]} of request {named} is -5"):
        attention.run(**tensors(42), stream=STREAM)


def test_lengths_on_the_gpu_and_prefixes_do_not_go_together(gpu: FakeGpu) -> None:
    lengths = TorchTensor((3,), 1 << 39, "torch.int32")
    with pytest.raises(ValueError, match="leave one of them out"):
        plan(layer(), MIXED, shared_prefixes=[PREFIX], device_kv_lens=lengths)


def test_trials_are_not_asked_about_batches_with_prefixes(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were measured without."""
    attention = layer(policy=podrt.Policy(autotuned=True))
    plan(attention, MIXED)
    scheduler = attention._session_ready().scheduler
    monkeypatch.setattr(scheduler, "_trials", {None: "a trial"})
    decodes: Any = ([0, 1, 2, 3], [400, 500, 600])
    plan(attention, decodes, shared_prefixes=[(0, 3, 320)])
    assert attention.shared_prefixes == ((0, 3, 320),)


def test_a_graph_without_pages_or_of_fixed_bits_has_no_prefixes(gpu: FakeGpu) -> None:
    for options in ({"page_size": None}, {"deterministic": True}):
        with pytest.raises(ValueError, match="max_prefixes=2: with"):
            layer(**options).reserve(**LIMITS, max_prefixes=2, stream=STREAM)


def test_values_may_be_narrower() -> None:
    attention = podrt.SharedPrefixAttention(8, 2, 192, v_head_dim=128, page_size=PAGE_SIZE)
    assert (attention._attention.layer.head_dim, attention._attention.layer.value_dim) == (192, 128)
