"""The measurement of vLLM: what it makes of times and results, without vLLM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from podrt.bench.serving import vllm, vllm_engine, vllm_measure
from podrt.bench.serving.document import Journal
from podrt.bench.serving.gpu_clock import _kind_of
from podrt.bench.serving.requests import Batch
from podrt.bench.serving.run import Run
from podrt.bench.serving.vllm_compare import comparisons


def a_run() -> Run:
    run = Run(2)
    run.arrivals_s, run.prompt_tokens, run.steps = [0.0, 1.0], 70, 5
    run.tokens = [[1, 2, 3], [4, 5]]
    run.times_s = [[1.0, 1.5, 2.5], [3.0, 4.0]]
    return run


def test_percentiles_are_of_times_to_and_between_tokens() -> None:
    summary = a_run().summary()
    assert (summary["seconds"], summary["steps"]) == (4.0, 5)
    assert summary["generated_tokens_per_s"] == 5 / 4
    assert summary["all_tokens_per_s"] == 75 / 4
    assert summary["ttft_p50_s"] == 1.5
    assert summary["tbt_p50_ms"] == 1000.0


def row(backend: str, **changes: Any) -> dict[str, Any]:
    given = {
        "backend": backend,
        "mode": "FULL",
        "budget": 512,
        "all_tokens_per_s": 100.0,
        "gpu_attention_ms": 30.0,
        "tokens": [[1, 2, 3], [4, 5]],
    }
    return given | changes


def test_the_last_backend_is_set_against_the_first() -> None:
    better = row("PODRT", all_tokens_per_s=110.0, gpu_attention_ms=20.0, tokens=[[1, 2, 9], [7, 5]])
    (line,) = comparisons([row("FLASH_ATTN"), better])
    assert "FULL budget 512: PODRT against FLASH_ATTN" in line
    assert "tokens/s 1.100x" in line
    assert "GPU time in attention 1.500x" in line
    assert "first tokens equal 1/2, all equal up to 1 on average" in line


def test_rows_are_set_side_by_side_where_trace_and_rate_are_the_same() -> None:
    old = [
        row("FLASH_ATTN", trace="arxiv", rate=0.0, tbt_p99_ms=40.0),
        row("FLASH_ATTN", trace="arxiv", rate=1.4, share_of_capacity=0.7, tbt_p99_ms=40.0),
        row("FLASH_ATTN", trace="conv", rate=2.0, tbt_p99_ms=40.0),
    ]
    new = [{**each, "backend": "PODRT", "tbt_p99_ms": 32.0} for each in old[1:]]
    lines = comparisons([*old, *new])
    assert [line.split(":")[0] for line in lines] == [
        "FULL budget 512 arxiv at 70% of the capacity",
        "FULL budget 512 conv at 2 requests/s",
    ]
    assert all("TBT P99 1.250x" in line for line in lines)


def test_tokens_of_two_gpus_are_set_against_those_of_one() -> None:
    margins = [[2.0, 1.0, 0.25], [3.0, 2.0]]
    one = row("PODRT", gpus=1, margins=margins)
    two = row("PODRT", gpus=2, margins=margins, tokens=[[1, 2, 9], [4, 5]])
    (line,) = comparisons([one, two])
    assert "PODRT on 2 GPUs against PODRT on 1 GPUs" in line
    assert "1 requests to their end" in line
    assert "decided by 0.250 at most, by 2.000 in the median" in line


def test_backends_that_failed_are_left_out() -> None:
    failed = {"backend": "FLASH_ATTN", "mode": "FULL", "error": "no"}
    assert comparisons([failed, row("PODRT")]) == []


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("pod_hopper_sm_90a_bf16_d128_page16_causal", "attention"),
        ("decode_portable_sm_80_f16_d64", "attention"),
        (
            "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90>>",
            "attention",
        ),
        ("void cutlass::device_kernel<flash::FlashAttnFwdCombine<...>>", "helpers"),
        ("flash::prepare_varlen_num_blocks_kernel", "helpers"),
        ("cache_write_sm_90a_d128_page16", "writes"),
        ("void vllm::reshape_and_cache_flash_kernel<...>", "writes"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", None),
        ("void at::native::elementwise_kernel<...>", None),
    ],
)
def test_kernels_are_told_apart_by_name(kernel: str, kind: str | None) -> None:
    assert _kind_of(kernel) == kind


def test_graphs_have_the_largest_budget_among_their_sizes() -> None:
    full = vllm_engine._compilation("FULL", 600)
    assert full["cudagraph_mode"] == "FULL"
    assert full["cudagraph_capture_sizes"][-2:] == [512, 600]
    assert "cudagraph_capture_sizes" not in vllm_engine._compilation("EAGER", 600)
    assert vllm_engine._compilation("FULL_AND_PIECEWISE", 600) == {
        "cudagraph_mode": "FULL_AND_PIECEWISE"
    }


def test_the_model_is_of_the_shape_that_is_asked_for() -> None:
    options = SimpleNamespace(
        heads="32/8", head_dim=128, hidden=4096, layers=32, vocabulary=128256, dtype="bfloat16"
    )
    model = vllm_engine._model(options, 1000)  # type: ignore[arg-type]
    assert (model["num_attention_heads"], model["num_key_value_heads"]) == (32, 8)
    assert (model["intermediate_size"], model["max_position_embeddings"]) == (14336, 1000)


def test_weights_are_those_of_the_model_whatever_the_number_of_gpus() -> None:
    options = SimpleNamespace(
        heads="4/2", head_dim=64, hidden=128, layers=2, vocabulary=300, dtype="float16"
    )
    config = SimpleNamespace(**vllm_engine._model(options, 1000))  # type: ignore[arg-type]
    matrices = dict(vllm_engine._matrices(config))
    assert len(matrices) == 2 + 7 * 2
    assert matrices["model.embed_tokens.weight"] == matrices["lm_head.weight"] == (300, 128)
    assert matrices["model.layers.1.self_attn.k_proj.weight"] == (128, 128)
    assert matrices["model.layers.1.self_attn.o_proj.weight"] == (128, 256)
    assert matrices["model.layers.0.mlp.down_proj.weight"] == (128, 448)


def test_traces_have_numbers_of_requests_of_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.csv" for name in ("one", "two", "three")]
    for path in paths:
        path.write_text("num_prefill_tokens,num_decode_tokens\n" + "5,3\n" * 4)
    options = SimpleNamespace(
        trace=list(map(str, paths)), requests="3,1", most_output=8, vocabulary=50
    )
    loads = vllm_measure._loads(options)  # type: ignore[arg-type]
    assert [(load.name, len(load.prompts)) for load in loads] == [
        ("one", 3),
        ("two", 1),
        ("three", 1),
    ]
    options.requests = "0"
    assert vllm_measure._loads(options) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modes", "FULL,GRAPHS"], "--modes FULL,GRAPHS: 'GRAPHS' is not one of EAGER"),
        (["--budgets", "512,x"], "--budgets 512,x: expected whole numbers"),
        (["--tensor-parallel", "two"], "--tensor-parallel two: expected whole numbers"),
        (["--decode", "8"], "--decode 8: expected REQUESTSxPROMPT"),
        (["--rates", "70%"], "--rates: .* have the rate 0 before it"),
        (["--requests", "0"], "--requests 0: leaves nothing to measure"),
        (["--trace", "missing.csv"], "--trace missing.csv: No such file or directory; pass"),
        (["--heads", "32"], "heads='32': expected query and KV heads"),
    ],
)
def test_options_are_read_before_an_engine_starts(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(vllm, "_in_a_process", lambda *_: pytest.fail("an engine starts"))
    with pytest.raises(ValueError, match=said):
        vllm.main(arguments)


def decode_row(
    monkeypatch: pytest.MonkeyPatch, text: str, begins_s: list[float], **changes: Any
) -> dict[str, Any]:
    """Return the row of decodes of requests that begin at some times, with a token a second."""
    run = Run(len(begins_s))
    output = int(text.rpartition("+")[2])
    run.times_s = [[begin + n for n in range(output)] for begin in begins_s]
    monkeypatch.setattr(vllm_measure, "serve", lambda *_: run)
    options = vllm._parser().parse_args(["--decode", text])
    vars(options).update(changes)
    return vllm_measure._decode_speed(None, options, 1024)


def test_decodes_are_timed_where_all_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    found = decode_row(monkeypatch, "2x1024+5", [0.0, 1.0])
    assert found == {"decode_tokens_per_s": 2.0, "decode": "2x1024+5"}


@pytest.mark.parametrize("step", [1.0, 1.25], ids=["at its end", "after it"])
def test_decodes_that_never_all_decode_are_an_error(
    monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    found = decode_row(monkeypatch, "33x1024+33", [step * n for n in range(33)])
    assert found.keys() == {"decode", "error"}
    assert "--decode 33x1024+33: the first request ends before the last begins" in found["error"]
    assert "at least 35 output tokens are needed: pass --decode 33x1024+35" in found["error"]
    assert comparisons([row("FLASH_ATTN"), row("PODRT", **found)]) == []


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("2x1024+8", {"sequences": 1}),
        ("2x1024+8", {}),  # no room for both
        ("2000x1+8", {"sequences": 4000}),
    ],
)
def test_where_more_output_would_not_help_the_room_is_named(
    monkeypatch: pytest.MonkeyPatch, text: str, changes: dict[str, Any]
) -> None:
    found = decode_row(monkeypatch, text, [0.0, 8.0], **changes)
    assert "decode fewer, or raise --sequences" in found["error"]


@pytest.mark.parametrize(
    ("batch", "budget", "drafts", "needed"),
    [
        (Batch(1, 8, 1), 8, 0, 2),
        (Batch(4, 256, 1), 1024, 0, 2),
        (Batch(2, 1024, 1), 1024, 0, 4),  # the step of the first decode leaves 1023
        (Batch(32, 1024, 32), 1024, 0, 34),
        (Batch(2, 1024, 1), 1024, 3, 13),
        (Batch(65, 64, 1), 64, 0, None),
    ],
)
def test_output_that_decodes_need(
    batch: Batch, budget: int, drafts: int, needed: int | None
) -> None:
    assert vllm_measure._output_needed(batch, budget, 1 + drafts) == needed


def test_shares_are_of_the_first_backend_that_ran() -> None:
    failed = {"backend": "FLASH_ATTN", "mode": "FULL", "gpus": 1, "error": "no room"}
    first, second = (row(name, gpus=1) for name in ("PODRT", "PODRT/serial"))
    assert vllm._rows_of_the_first([failed, first, second], "FULL", 1) == [first]
    assert vllm._rows_of_the_first([failed], "FULL", 1) == []


@pytest.mark.parametrize("rows", [[row("PODRT", error="exit code 1")], []])
def test_where_nothing_was_measured_the_command_fails(rows: list[dict[str, Any]]) -> None:
    journal = Journal("vllm", [], None, packages=(), compare=comparisons)
    for each in rows:
        journal.add(each)
    with pytest.raises(SystemExit, match="1"):
        journal.close()
    journal.add(row("FLASH_ATTN"))
    journal.close()
