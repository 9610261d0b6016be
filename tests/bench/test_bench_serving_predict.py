"""What attention of a trace is predicted to take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from podrt.bench.serving import predict

ARGUMENTS = ["--requests", "6", "--most-output", "20", "--layers", "2"]


def rows_of(tmp_path: Path, *arguments: str) -> list[predict.Row]:
    path = tmp_path / "predicted.json"
    predict.main([*ARGUMENTS, "--out", str(path), *arguments])
    return json.loads(path.read_text())


def test_a_row_for_each_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(tmp_path, "--budgets", "256,512")
    assert [row["budget"] for row in rows] == [256, 512]
    assert rows[0]["steps"] > rows[1]["steps"] > 20  # as each generates 20 tokens
    assert all(0 < row["hybrid_steps"] < row["steps"] for row in rows)
    assert capsys.readouterr().out.count("tokens a step") == 2


def test_layers_multiply_and_policies_differ(tmp_path: Path) -> None:
    (one,) = rows_of(tmp_path, "--budgets", "512", "--layers", "1")
    (two,) = rows_of(tmp_path, "--budgets", "512")
    assert two["attention_ms"] == pytest.approx({k: 2 * v for k, v in one["attention_ms"].items()})
    assert one["attention_ms"]["auto"] < one["attention_ms"]["serial"]


def test_one_request_has_nothing_to_fuse(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "--requests", "1", "--budgets", "512")
    assert row["hybrid_steps"] == 0
    assert row["attention_ms"]["auto"] == pytest.approx(row["attention_ms"]["serial"])


def test_policies_without_predictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--policies portable: .* have no predictions"):
        rows_of(tmp_path, "--budgets", "512", "--policies", "portable")


@pytest.mark.parametrize(
    "option",
    ["--layers", "--requests", "--budgets", "--most-output", "--sequences", "--cache-tokens"],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} 0: expected whole numbers of at least 1"):
        rows_of(tmp_path, option, "0")


def test_one_number_of_layers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--layers 2,3: expected one number"):
        rows_of(tmp_path, "--layers", "2,3")


def test_contiguous_caches_have_one_meaning(tmp_path: Path) -> None:
    rows = [
        rows_of(tmp_path, "--requests", "2", "--budgets", "512", "--page-size", text)
        for text in ("none", "0")
    ]
    assert rows[0] == rows[1]
    with pytest.raises(ValueError, match="page-size='small': expected tokens of a page, or no"):
        rows_of(tmp_path, "--page-size", "small")


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "none.csv"
    trace.write_text("num_prefill_tokens,num_decode_tokens\n")
    with pytest.raises(ValueError, match=r"--trace .*none.csv: has no requests"):
        rows_of(tmp_path, "--trace", str(trace))
