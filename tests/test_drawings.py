"""Drawings of the documentation are what their scripts draw, and numbers those of results files."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import xml.etree.ElementTree as ET

import pytest
from readme import ROOT, read
from typer.testing import CliRunner

from podrt import cli
from podrt.explore.record import read_record
from podrt.explore.timeline import Span

_FOLDER = ROOT / "docs" / "drawings"


def _script(name):
    """A module of docs/drawings, which are scripts beside each other."""
    sys.path.insert(0, str(_FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(f"drawings_{name}", _FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # for its dataclasses
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(_FOLDER))
    return module


def _svg(name):
    return (_FOLDER / f"{name}.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(_FOLDER.glob("*.svg")), ids=lambda path: path.stem)
def test_drawings_are_whole_and_fit_light_and_dark_pages(path):
    text = path.read_text(encoding="utf-8")
    assert ET.fromstring(text).find("{http://www.w3.org/2000/svg}title").text
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text
    assert len(text) < 100_000


def test_drawings_by_hand_are_what_the_script_draws():
    for name, drawing in _script("draw").DRAWINGS.items():
        assert _svg(name) == drawing().svg()


def test_the_timeline_of_the_readme_can_be_drawn_again(tmp_path):
    path, batch = tmp_path / "timeline.json", "2048@16384 + 64x16384"
    command = ["explore", "trace", batch, "--gpu", "h100", "--beside", "serial", "--record"]
    assert CliRunner().invoke(cli.app, [*command, str(path)]).exit_code == 0
    record = read_record(path)
    drawn = _script("timeline").draw(record).svg()
    assert "132 SMs of an NVIDIA H100 80GB HBM3, simulated" in drawn
    assert all(f"{run.timeline.end_us:.0f} us" in drawn for run in record.runs)
    assert drawn.count("<rect") > 12 * 2 * 3


def test_a_unit_is_drawn_once_and_decodes_as_long_as_one_is_at_work():
    unit = {"item": 3, "kv_head": 1, "cta": 2}
    spans = [Span(0, "prefill", 0, 50, warp=8, **unit), Span(0, "prefill", 1, 60, warp=12, **unit)]
    assert _script("timeline")._units(spans) == [(0, 60)]
    decodes = [Span(0, "decode", at, at + 10) for at in (0, 5, 15.5, 40)]
    assert list(_script("timeline")._busy(decodes, gap_us=1)) == [(0, 25.5), (40, 50)]


def test_the_timeline_of_the_readme_is_the_measured_one():
    for path in ROOT.glob("bench/results/h100/sweep/timeline.json"):
        assert _svg("timeline") == _script("timeline").draw(read_record(path)).svg()
        assert path.stat().st_size < 300_000


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_bars_and_tables_are_of_the_results_files(gpu):
    results = json.loads((ROOT / "bench" / "results" / gpu / "peers.json").read_text())
    script = _script("results")
    assert _svg(f"peers-{gpu}") == script.draw(results).svg()
    rows = {}
    for row in _table_below(f"{gpu}/peers.json` (commit"):
        batch = row["chunk @ keys + decodes x keys"].replace(" @ ", "@").replace(" x ", "x")
        rows[f"{row['query/KV heads']}  {batch}"] = row
    times = script.times_of(results["rows"])
    assert rows.keys() == times.keys()
    for case, own in times.items():
        assert rows[case]["FA3 serial"] == f"{own['fa3']:.0f}"
        assert rows[case]["podrt serial"] == f"{own['serial']:.0f}"
        assert rows[case]["**podrt fused**"] == f"{own['fused']:.0f}"
        assert rows[case]["FA3 serial / podrt"] == f"{own['fa3'] / own['fused']:.2f}"


def _table_below(text):
    """Rows of the first table below some text of the results page, by column."""
    page = read("docs/results.md")
    lines = page[page.index(text) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    return [dict(zip(names, row, strict=True)) for row in rows]
