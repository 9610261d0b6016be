"""What the records of a sweep say: ranks, heat maps, tables, files and the roofline."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from podrt.bench.sweep.heatmap import ALLOCATION, axis_map, heat_maps, shape_map
from podrt.bench.sweep.heatmap_figure import draw_heat_map
from podrt.bench.sweep.records import Sweep, load
from podrt.bench.sweep.roofline import roofline
from podrt.bench.sweep.summary import axis_effects, summarise, variant_summaries
from podrt.bench.sweep.tables import (
    case_table,
    export,
    heat_map_table,
    skip_lines,
    to_csv,
    to_json,
    to_md,
    variant_table,
    wrong_table,
)

EXAMPLE = load(Path(__file__).resolve().parents[1] / "data" / "sweep.jsonl")
GPU = "NVIDIA H100 80GB HBM3"
WRONG, FAILED = "hopper serial=false prefill_tile_keys=64", "portable serial=false ratio=1:2"


@pytest.fixture
def cases():
    return summarise(EXAMPLE)


def times(**by_variant):
    """Return the example's first case with other times; all others are left out."""
    first = [r for r in EXAMPLE.results if r.case == EXAMPLE.results[0].case]
    names = {name.replace("_", " "): us for name, us in by_variant.items()}
    changed = [
        replace(r, time_us=names[r.variant], auto_us=names["auto"])
        for r in first
        if r.variant in names
    ]
    return summarise(Sweep(EXAMPLE.environments, tuple(changed), ()))[0]


def test_what_is_wrong_is_never_ranked(cases):
    assert len(cases) == 4
    for case in cases:
        assert {r.variant for r in case.unranked} == {WRONG, FAILED}
        assert not {r.variant for r in case.ranked} & {WRONG, FAILED, "prefill alone"}
        assert case.ranked[0] is case.best
        assert case.regret >= 1
    rows = {row.name: row for row in variant_summaries(cases)}
    assert (rows[WRONG].cases, rows[WRONG].wrong) == (0, 4)
    assert rows["auto"].geomean == 1
    assert list(rows)[-1] in (WRONG, FAILED)
    assert sum(row.wins for row in rows.values()) >= 4


def test_times_and_sides():
    case = times(auto=100.0, serial=140.0, prefill_alone=60.0, decode_alone=80.0)
    assert case.sides_us == (60.0, 80.0)
    assert case.serial_us == 140.0
    assert case.decode_share == pytest.approx(80 / 140)
    assert case.regret == 1.0
    assert case.overlap_of(case.auto) == pytest.approx(40 / 60)
    assert case.ties == ("auto",)


def test_the_drift_of_clocks_between_turns_does_not_rank(cases):
    case = cases[0]
    slower, faster = case.ranked[1], case.ranked[0]
    # measured later, when everything took twice as long
    moved = [
        replace(r, time_us=2 * r.time_us, auto_us=2 * r.auto_us) if r is faster else r
        for r in case.results
    ]
    (again,) = summarise(Sweep(EXAMPLE.environments, tuple(moved), ()))
    assert again.best.variant == faster.variant
    assert again.best.time_us > slower.time_us


def test_axis_effects(cases):
    effects = [each for each in axis_effects(cases) if each.axis == "decode_only_sms"]
    assert [each.value for each in effects] == ["0", "4", "8", "16", "32"]
    assert all(each.geomean >= 1 and each.cases == 4 for each in effects)


def test_allocation_over_decode_share(cases):
    found = axis_map(cases, ALLOCATION, GPU)
    assert found.ys[:3] == ("prefill 16", "prefill 8", "decode 0")
    assert [x.split()[0] for x in found.xs] == sorted(x.split()[0] for x in found.xs)
    columns = list(zip(*found.cells, strict=True))
    for column in columns:
        known = [cell for cell in column if cell is not None]
        (best,) = [cell for cell in known if cell.is_best]
        assert best.value == min(cell.value for cell in known)
        (auto,) = [cell for cell in known if cell.is_auto]
        assert auto.value >= 1
    assert len(found.notes) == 4
    assert all("auto +" in note for note in found.notes)


def test_the_automatic_choice_stands_where_it_chose(cases):
    found = axis_map(cases, ALLOCATION, GPU)
    for x, case in enumerate(sorted(cases, key=lambda each: each.decode_share)):
        sms = case.auto.shares["decode_only_sms"]
        assert found.cells[found.ys.index(f"decode {sms}")][x].is_auto


def test_a_map_of_another_axis_has_a_row_for_auto(cases):
    found = axis_map(cases, "ratio", GPU)
    assert found.ys == ("2:1", "1:1", "auto")
    assert all(cell.is_auto for cell in found.cells[-1])
    assert axis_map(cases, "decode_rows", GPU) is None
    with pytest.raises(
        ValueError, match="map='decode_row': there is no such axis; try decode_rows"
    ):
        heat_maps(cases, GPU, ["decode_row"])


def test_prefill_length_over_decode_batch(cases):
    found = shape_map(cases, GPU)
    assert (found.xs, found.ys) == (("32", "96"), ("2048", "512"))
    cells = [cell for line in found.cells for cell in line]
    (best,) = [cell for cell in cells if cell.is_best]
    assert best.value == max(cell.value for cell in cells) > 1
    assert all("auto +" in cell.label for cell in cells)
    assert shape_map(cases[:1], GPU) is None


def shown(table):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_tables(cases):
    assert "512@16384 + 32x8192" in shown(case_table(cases, "cases"))
    assert "time / auto" in shown(variant_table(variant_summaries(cases), "variants"))
    text = shown(wrong_table(cases))
    assert "made up" in text
    assert "error 0.4 > 0.016 at request 0" in text
    assert wrong_table([times(auto=1.0)]) is None
    maps = shown(heat_map_table(axis_map(cases, ALLOCATION, GPU)))
    assert "decode 16" in maps
    assert maps.count("*") >= 4
    assert any("is of the Hopper family" in line for line in skip_lines(EXAMPLE.skips))


def test_files_have_the_environment(tmp_path):
    rows = list(csv.DictReader(io.StringIO(to_csv(EXAMPLE))))
    assert len(rows) == len(EXAMPLE.results)
    assert {row["gpu"] for row in rows} == {GPU}
    assert {row["heads"] for row in rows} == {"32/8"}
    text = to_md(EXAMPLE)
    assert "- driver: 580.1" in text
    assert "| case | auto us |" in text
    assert "- skipped portable serial=false decode_only_sms=8" in text
    data = json.loads(to_json(EXAMPLE))
    assert len(data["results"]) == len(EXAMPLE.results)
    assert data["gpus"][0]["heat_maps"][0]["title"].startswith("allocation")
    for name in ("a.json", "a.csv", "a.md"):
        export(EXAMPLE, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(ValueError, match=r"must end with one of .json, .csv, .md"):
        export(EXAMPLE, tmp_path / "a.txt")


def test_pictures(cases, tmp_path):
    pytest.importorskip("matplotlib")
    for number, heat_map in enumerate(heat_maps(cases, GPU)):
        for ending in ("png", "svg"):
            path = tmp_path / f"{number}.{ending}"
            draw_heat_map(heat_map, path)
            assert 3000 < path.stat().st_size < 200_000
        words = "".join(ElementTree.parse(path).getroot().itertext())
        assert heat_map.y_name in words


def test_every_variant_is_on_the_roofline(cases):
    points = roofline(EXAMPLE)
    assert len(points) == sum(len(case.ranked) for case in cases)
    assert all(point.matmul_share > 0 and point.memory_share > 0 for point in points)
    auto = {p.case: p for p in points if p.policy == "auto"}
    for case in cases:
        assert auto[case.name].overlap == pytest.approx(case.overlap_of(case.auto))
    with pytest.raises(ValueError, match="variant='auto2': not measured; try auto"):
        roofline(EXAMPLE, ["auto2"])
    without = {k: {**v, "ceilings": None} for k, v in EXAMPLE.environments.items()}
    with pytest.raises(ValueError, match="has no ceilings"):
        roofline(replace(EXAMPLE, environments=without))
