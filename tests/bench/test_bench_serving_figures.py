"""Figures of serving results: of the files that are committed, and of made-up rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")

from matplotlib.figure import Figure

from podrt.bench.serving import figures

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "h100"


def row(backend: str, **changes: Any) -> dict[str, Any]:
    given = {
        "backend": backend,
        "mode": "FULL",
        "budget": 512,
        "seconds": 2.0,
        "steps": 100,
        "all_tokens_per_s": 1000.0,
        "ttft_p50_s": 1.0,
        "ttft_p99_s": 3.0,
        "gpu_ms": 1800.0,
        "gpu_attention_ms": 600.0,
        "gpu_writes_ms": 50.0,
        "gpu_helpers_ms": 50.0,
    }
    return given | changes


def heights(panel: Any) -> list[float]:
    return [bar.get_height() for bar in panel.patches]


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("serving/vllm-arxiv", ["throughput", "percentiles", "time"]),
        ("serving/transformers-batch", ["throughput", "percentiles"]),
    ],
)
def test_committed_results_are_drawn_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, drawn: list[str]
) -> None:
    figures.main([str(RESULTS / f"{name}.json"), "--out", str(tmp_path / "new")])
    paths = [tmp_path / "new" / f"{Path(name).name}-{each}.png" for each in drawn]
    assert capsys.readouterr().out.split() == list(map(str, paths))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_throughput_has_no_runs_at_a_rate() -> None:
    figure = Figure()
    rows = [row("FLASH_ATTN"), row("PODRT", all_tokens_per_s=1100.0), row("PODRT", rate=2.0)]
    assert figures.draw_throughput(figure, rows)
    (panel,) = figure.axes
    assert heights(panel) == [1000.0, 1100.0]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["FLASH_ATTN", "PODRT"]


def test_percentiles_stand_by_rate_with_p99_behind_p50() -> None:
    figure = Figure()
    rows = [row("PODRT", rate=1.4, share_of_capacity=0.7), row("PODRT", rate=2.0, ttft_p50_s=2.0)]
    assert figures.draw_percentiles(figure, rows)
    (panel,) = figure.axes
    assert heights(panel) == [3.0, 3.0, 1.0, 2.0]
    places = [text.get_text() for text in panel.get_xticklabels()]
    assert places == ["FULL 512 70%", "FULL 512 2/s"]


def test_parts_of_a_step_make_up_its_time() -> None:
    parts = figures.time_of_step(row("PODRT"))
    assert parts["attention"] == pytest.approx(6.0)
    assert parts["GPU idle"] == pytest.approx(2.0)
    assert sum(parts.values()) == pytest.approx(20.0)
    figure = Figure()
    assert figures.draw_time(figure, [row("FLASH_ATTN"), row("PODRT")])
    assert not figures.draw_time(Figure(), [row("PODRT", steps=0)])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="expected results of podrt bench serving"):
        figures.plot_serving(path, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected results of podrt bench serving"),
        ('{"environment": {}, "rows": []}', "expected results of podrt bench serving"),
        ('{"environment": {"gpu": "X"}, "rows": [3]}', "expected results of podrt bench serving"),
        ('{"environment": {"gpu": "X"}, "rows": [{"error": "no room"}]}', "has nothing to draw"),
        (
            '{"environment": {"gpu": "X"}, "rows": [{"backend": "PODRT", "ttft_p50_s": 1.0}]}',
            "a row has no 'mode', which the figure of percentiles needs",
        ),
    ],
)
def test_files_that_cannot_be_drawn_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"broken.json: {said}"):
        figures.main([str(path), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory; pass a file that can be read"),
        (b"no JSON", "expected results of podrt bench serving"),
        (b"\xff", "expected text in UTF-8, got invalid start byte at byte 0"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_argument(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^FILE {re.escape(str(path))}: {said}"):
        figures.main([str(path)])


def test_figures_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / name / "serving.json" for name in ("one", "two")]
    with pytest.raises(ValueError, match="would have figures of the same names in --out"):
        figures.main([*map(str, files), "--out", str(tmp_path)])
