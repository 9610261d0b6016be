"""``podrt explore report``: a file of records, and a trace, become one HTML file."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import run

from podrt.explore.record import TimelineRecord, TracedRun
from podrt.explore.timeline import Span, Timeline

EXAMPLE = Path(__file__).resolve().parents[1] / "data" / "sweep.jsonl"


def test_a_report_of_a_sweep_and_a_simulated_timeline(tmp_path):
    trace, out = tmp_path / "trace.json", tmp_path / "new" / "report.html"
    run("explore", "trace", "1024@8192 + 64x8192", "--gpu", "h100", "--chrome", trace)
    run("explore", "report", EXAMPLE, "--timeline", trace, "--no-sass", "-o", out)
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "podrt: sweep sweep" in page
    assert '"source":"simulated"' in page


def test_a_report_takes_the_timeline_beside_its_sweep_else_a_simulated_one(tmp_path):
    sweep, out = tmp_path / "sweep.jsonl", tmp_path / "report.html"
    sweep.write_text(EXAMPLE.read_text())
    run("explore", "report", sweep, "--no-sass", "-o", out)
    page = out.read_text(encoding="utf-8")
    assert '"source":"simulated"' in page and ', auto","roles"' in page
    timeline = Timeline("a GPU", 2, (Span(0, "prefill", 0, 1),), "measured")
    record = TimelineRecord("7@9 + 3", {}, (TracedRun("hopper", ("pod",), timeline, 9.0, 9.1),))
    (tmp_path / "timeline.json").write_text(record.to_json())
    run("explore", "report", sweep, "--no-sass", "-o", out)
    page = out.read_text(encoding="utf-8")
    assert '"source":"measured"' in page and '"title":"7@9 + 3, hopper"' in page
    (tmp_path / "timeline.json").write_text("{}")
    with pytest.raises(ValueError, match=r"timeline.json: no trace of"):
        run("explore", "report", sweep, "--no-sass", "-o", out)


def test_a_report_is_an_html_file(tmp_path):
    with pytest.raises(ValueError, match=r"a.pdf: must end with .html"):
        run("explore", "report", EXAMPLE, "-o", tmp_path / "a.pdf")


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(EXAMPLE.read_text().replace('"ok"', '"fine"', 1))
    with pytest.raises(ValueError, match=r"broken.jsonl, line \d+: no record"):
        run("explore", "report", path, "-o", tmp_path / "a.html")
