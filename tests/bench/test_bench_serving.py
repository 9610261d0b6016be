"""What the serving benchmarks share: requests, times, results; without an engine."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import H100
from rich.console import Console

from podrt.bench import environment
from podrt.bench.serving import document
from podrt.bench.serving.clock import timing
from podrt.bench.serving.progress import rows_bar
from podrt.bench.serving.requests import (
    Rate,
    load_of,
    parse_batch,
    parse_names,
    parse_numbers,
    parse_rates,
    prompts_of,
    requests_of,
    requests_of_traces,
)
from podrt.bench.serving.run import Run, agreement


def test_a_batch_is_read() -> None:
    assert parse_batch("--decode", "32x4096+128") == (32, 4096, 128)


@pytest.mark.parametrize("text", ["", "32", "32x4096", "32+4096x128", "x1+1", "3x-1+2"])
def test_another_batch_is_refused_with_an_example(text: str) -> None:
    said = rf"--batch {re.escape(text)}: expected REQUESTSxPROMPT\+OUTPUT, such as 32x4096\+128"
    with pytest.raises(ValueError, match=said):
        parse_batch("--batch", text)


def test_prompts_are_the_same_at_every_call() -> None:
    prompts = prompts_of([5, 0, 7], 100)
    assert [len(prompt) for prompt in prompts] == [5, 0, 7]
    assert prompts == prompts_of([5, 0, 7], 100)
    assert all(3 <= token < 100 for prompt in prompts for token in prompt)


def test_a_load_is_the_beginning_of_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n5,90\n7,0\n9,3\n")
    load = load_of(str(path), 2, 40, 100)
    assert (load.name, [len(prompt) for prompt in load.prompts]) == ("lengths", [5, 7])
    assert (load.lengths, load.longest) == ([40, 1], 45)
    assert load.first(1).prompts == load.prompts[:1]


def test_rates_are_requests_a_second_or_shares_of_the_capacity() -> None:
    assert parse_rates("0,70%,1.5") == [Rate(0.0), Rate(0.7, True), Rate(1.5)]
    assert [rate.of(2.0) for rate in parse_rates("0,70%,1.5")] == [0.0, 1.4, 1.5]
    with pytest.raises(ValueError, match="have the rate 0 before it"):
        Rate(0.7, True).of(None)
    with pytest.raises(ValueError, match=r"rate of 70%: .* have the rate 0 before it"):
        parse_rates("1.5,70%,0")


@pytest.mark.parametrize("text", ["", "fast", "-1", "70%,", "nan", "inf", "0,0%"])
def test_other_rates_are_refused(text: str) -> None:
    said = f"--rates {re.escape(text)}: .* expected requests a second, or a share such as 70%"
    with pytest.raises(ValueError, match=said):
        parse_rates(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory; pass a file that can be read"),
        (b"hello\n", "columns are"),
        (b"\xff\xfe\x00", "expected text in UTF-8, got invalid start byte at byte 0"),
        (b'num_prefill_tokens,num_decode_tokens\n"' + b"5" * 200_000, "expected a CSV file"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "trace.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"--trace {re.escape(str(path))}(:1)?: {said}"):
        requests_of(str(path), 4)


def test_the_last_number_of_requests_counts_for_all_other_traces() -> None:
    assert requests_of_traces("16,48", ["a", "b", "c"]) == [16, 48, 48]
    with pytest.raises(ValueError, match="--requests 16,48: 2 numbers for 1 trace; give one"):
        requests_of_traces("16,48", [None])
    with pytest.raises(ValueError, match="--requests -1: expected whole numbers of at least 0"):
        requests_of_traces("-1", [None])


def test_lists_of_options_name_what_is_wrong() -> None:
    assert parse_numbers("--budgets", "512,1024") == [512, 1024]
    for text in ("", "0", "512,", "1e3", "-5"):
        with pytest.raises(ValueError, match=f"--budgets {text}: expected whole numbers of at lea"):
            parse_numbers("--budgets", text)
    assert parse_names("--modes", "graphs", ("eager", "graphs")) == ["graphs"]
    with pytest.raises(ValueError, match="--modes eager,graph: 'graph' is not one of eager, grap"):
        parse_names("--modes", "eager,graph", ("eager", "graphs"))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_says_what_is_measured_on_a_terminal_alone(is_terminal: bool) -> None:
    out = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    with rows_bar(4, out) as bar:
        bar.show("PODRT, FULL, 1 GPU")
        bar.reach(3)
    shown = out.file.getvalue()
    assert ("PODRT, FULL, 1 GPU" in shown and "3/4" in shown) is is_terminal
    assert bool(shown) is is_terminal


def test_stalls_and_latencies_are_counted() -> None:
    run = Run(2)
    run.tokens, run.arrivals_s = [[1, 2, 3], [4, 5]], [0.0, 1.0]
    run.times_s = [[1.0, 1.1, 1.4], [2.0, 2.6]]
    summary = run.summary()
    assert (summary["stalls_over_200_ms"], summary["stalls_over_500_ms"]) == (2, 1)
    assert summary["latency_p50_s"] == pytest.approx(1.5)
    assert summary["requests_per_min"] == pytest.approx(60 * 2 / 2.6)


def test_tokens_agree_up_to_the_first_that_differs() -> None:
    found = agreement([[1, 2, 3], [4, 5, 6]], [[1, 2, 9], [0, 5, 6]])
    assert found == "first tokens equal 1/2, all equal up to 1 on average"


class Base:
    def inherited(self, number: int) -> int:
        return number + 1


class Owner(Base):
    def own(self) -> str:
        return "own"


def test_methods_are_timed_within_the_block_alone() -> None:
    times: list[float] = []
    own = vars(Owner)["own"]
    with (
        timing(Owner, "own", times),
        timing(Owner, "inherited", times),
        timing(Owner, "no such", times),
    ):
        assert (Owner().own(), Owner().inherited(1)) == ("own", 2)
    assert len(times) == 2
    assert all(each >= 0 for each in times)
    assert vars(Owner)["own"] is own
    assert "inherited" not in vars(Owner)


def test_results_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def described(device: Any, _peers: list[str]) -> dict[str, Any]:
        return {"gpu": device.name, "git_commit": environment.git_commit()}

    monkeypatch.setattr(document, "describe", described)
    monkeypatch.setattr(document, "current_device", lambda: H100)
    path = tmp_path / "new" / "serving.json"
    rows = [{"backend": "PODRT", "tokens": [[1]], "seconds": 2.0}]
    document.save(rows, path, command="podrt bench serving vllm", packages=["numpy", "absent"])
    found = json.loads(path.read_text())
    assert found["environment"]["gpu"] == H100.name
    assert found["environment"]["packages"]["numpy"]
    assert found["environment"]["packages"]["absent"] is None
    assert found["rows"] == [{"backend": "PODRT", "seconds": 2.0}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "foo"], r"--batch foo: expected REQUESTSxPROMPT\+OUTPUT"),
        (["--trace", "missing.csv"], "--trace missing.csv: No such file or directory"),
        (["--page-size", "none"], "page-size='none': transformers has a paged cache"),
        (["--heads", "32"], "heads='32': expected query and KV heads"),
    ],
)
def test_options_of_transformers_are_read_before_a_model_is_made(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    from podrt.bench.serving import transformers

    monkeypatch.setattr(transformers, "current_device", lambda: pytest.fail("a GPU is asked for"))
    with pytest.raises(ValueError, match=said):
        transformers.main(arguments)
