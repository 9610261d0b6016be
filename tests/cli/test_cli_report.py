"""``podrt explore report``: a file of records, and a trace, become one HTML file."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import run

EXAMPLE = Path(__file__).resolve().parents[1] / "data" / "sweep.jsonl"


def test_a_report_of_a_sweep_and_a_simulated_timeline(tmp_path):
    trace, out = tmp_path / "trace.json", tmp_path / "new" / "report.html"
    run("explore", "trace", "1024@8192 + 64x8192", "--gpu", "h100", "--chrome", trace)
    run("explore", "report", EXAMPLE, "--timeline", trace, "--no-sass", "-o", out)
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "podrt: sweep sweep" in page
    assert '"source":"simulated"' in page


def test_a_report_is_an_html_file(tmp_path):
    with pytest.raises(ValueError, match=r"a.pdf: must end with .html"):
        run("explore", "report", EXAMPLE, "-o", tmp_path / "a.pdf")


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(EXAMPLE.read_text().replace('"ok"', '"fine"', 1))
    with pytest.raises(ValueError, match=r"broken.jsonl, line \d+: no record"):
        run("explore", "report", path, "-o", tmp_path / "a.html")
