"""Figures from made-up results."""

from __future__ import annotations

import pytest
from bench_support import make_results, make_rows

from podrt.bench.plot import plot_figures
from podrt.bench.suites import load_suite

pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")

TIMES_US = {"auto": 100.0, "serial": 130.0, "streams": 120.0}
TIMES_US |= {"prefill alone": 50.0, "decode alone": 80.0}
TIMES_US |= {"ctas=2": 100.0, "ctas=4": 110.0, "50:50": 105.0, "proportional": 100.0}


def results_of(*groups):
    cases = [case for case in load_suite("paper").cases if case.name.split("/")[0] in groups]
    return make_results(
        *(make_rows(case, TIMES_US, peers_us={"fa3 serial": 140.0}) for case in cases)
    )


def test_every_figure_is_a_png(tmp_path):
    paths, skipped = plot_figures(results_of("fig6", "fig11", "fig13", "fig14"), tmp_path / "new")
    assert [path.name for path in paths] == ["fig6.png", "fig11.png", "fig13.png", "fig14.png"]
    assert skipped == []
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_figures_without_data_are_named(tmp_path):
    paths, skipped = plot_figures(results_of("fig6"), tmp_path)
    assert [path.name for path in paths] == ["fig6.png"]
    assert skipped == ["fig11", "fig13", "fig14"]
