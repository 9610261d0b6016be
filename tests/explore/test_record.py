"""Timelines as a file."""

from __future__ import annotations

import json

import pytest

from podrt.bench.sweep.page.trace import read_trace
from podrt.explore.record import TimelineRecord, TracedRun, read_record
from podrt.explore.timeline import Dry, Span, Timeline

SPANS = (Span(3, "prefill", 0.5, 20.25, 7, 2, 5, 8), Span(0, "decode", 1.0, 4.0))
MEASURED = Timeline("a GPU", 4, SPANS, "measured", (Dry(3, "decode", 4.5, 5),), lost_events=2)
RECORD = TimelineRecord(
    "4@8 + 9",
    {"num_qo_heads": 8},
    (
        TracedRun("auto", ("pod",), MEASURED, 20.0, 21.0),
        TracedRun("serial", ("prefill", "decode"), Timeline("a GPU", 4, SPANS)),
    ),
    {"gpu": "a GPU"},
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "timeline.json"
    path.write_text(RECORD.to_json(), encoding="utf-8")
    return path


def test_what_is_read_is_what_was_written(path):
    found = read_record(path)
    assert found == RECORD
    assert found.runs[0].overhead == pytest.approx(0.05)
    assert found.runs[1].overhead is None
    first = json.loads(path.read_text())["runs"][0]
    assert first["overhead"] == 0.05 and first["summary"]["prefill_busy"] == pytest.approx(0.2438)


def test_a_measured_batch_of_many_units_is_small():
    spans = tuple(
        Span(unit % 132, "decode", 1234.567 + unit, 1345.678 + unit, unit, unit % 8, unit % 132, 12)
        for unit in range(6000)
    )
    run = TracedRun("auto", ("pod",), Timeline("a GPU", 132, spans, "measured"), 1.0, 1.0)
    assert len(TimelineRecord("4@8", {}, (run,)).to_json()) < 300_000


def test_a_page_takes_the_first_run(path):
    found = read_trace(path)
    assert (found["source"], found["gpu"], found["roles"]) == (
        "measured",
        "a GPU",
        ["prefill", "decode"],
    )
    assert found["rows"] == ["0", "3"]
    assert found["title"] == "4@8 + 9, auto"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("timelines 1", "timelines 2"),
        ('"runs": [', '"nothing": ['),
        ('"plain_us":20.0', '"plain":20.0'),
        ('"spans":[[3,0', '"spans":[[3,7'),
        ("{", "["),
    ],
)
def test_a_broken_file_is_named(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"timeline.json: no timelines of .* write it again"):
        read_record(path)
