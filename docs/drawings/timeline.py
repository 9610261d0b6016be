"""Draws two launches of a batch, one below the other: SMs over time, each with both of its roles.

    podrt explore trace BATCH --beside serial --record timeline.json
    python docs/drawings/timeline.py timeline.json

writes timeline.svg beside this file, which is the picture of the README. Records say themselves
whether they were simulated or measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from svg import Drawing

from podrt.explore.record import TimelineRecord, read_record
from podrt.explore.timeline import Span, Timeline

_SHOWN_SMS = 12
_WIDTH, _LEFT, _RIGHT = 880, 62, 14
_ROW, _GAP = 13, 2
_PANEL = _SHOWN_SMS * (_ROW + _GAP)


def draw(record: TimelineRecord) -> Drawing:
    """Return the drawing of a record's first run, and above it that of the one beside it."""
    fused, serial = (run.timeline for run in record.runs)
    drawing = Drawing(
        _WIDTH,
        2 * (_PANEL + 40) + 30,
        f"{record.batch} on an {fused.gpu}: one after the other takes {serial.end_us:.0f} us, "
        f"in one launch {fused.end_us:.0f} us ({fused.source})",
    )
    scale = (_WIDTH - _LEFT - _RIGHT) / max(serial.end_us, fused.end_us)
    shown = [i * (fused.num_sms - 1) // (_SHOWN_SMS - 1) for i in range(_SHOWN_SMS)]
    _panel(drawing, 26, serial, shown, scale, "two launches, prefill and then decode")
    _panel(drawing, 26 + _PANEL + 40, fused, shown, scale, "one launch: podrt")
    _legend(drawing, 2 * (_PANEL + 40) + 10, fused, record.batch, len(shown))
    return drawing


def _panel(
    drawing: Drawing, top: float, trace: Timeline, shown: list[int], scale: float, title: str
) -> None:
    drawing.text(_LEFT, top - 8, title, bold=True)
    end = _LEFT + trace.end_us * scale
    drawing.text(end, top - 8, f"{trace.end_us:.0f} us", bold=True, anchor="end")
    rows = {sm: top + row * (_ROW + _GAP) for row, sm in enumerate(shown)}
    for row, (sm, y) in enumerate(rows.items()):
        drawing.rect(_LEFT, y, trace.end_us * scale, _ROW, "panel")
        if row % 4 == 0 or row == len(rows) - 1:
            drawing.text(_LEFT - 7, y + 10, f"SM {sm}", fill="dim", size=10.5, anchor="end")
    for sm, y in rows.items():
        own = [span for span in trace.spans if span.sm == sm]
        for begin_us, end_us in _units(span for span in own if span.role == "prefill"):
            width = max((end_us - begin_us) * scale - 0.8, 0.5)
            drawing.rect(_LEFT + begin_us * scale, y, width, _ROW / 2, "prefill")
        decode = (span for span in own if span.role == "decode")
        for begin_us, end_us in _busy(decode, gap_us=1 / scale):
            width = max((end_us - begin_us) * scale, 0.5)
            drawing.rect(_LEFT + begin_us * scale, y + _ROW / 2, width, _ROW / 2, "decode")
    drawing.line([(end, top - 3), (end, top + _PANEL)], "ink")


def _units(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """Return begin and end of each unit, which two warpgroups may work on."""
    found: dict[object, tuple[float, float]] = {}
    for place, span in enumerate(spans):
        unit = place if span.item is None else (span.item, span.kv_head)
        begin_us, end_us = found.get(unit, (span.begin_us, span.end_us))
        found[unit] = min(begin_us, span.begin_us), max(end_us, span.end_us)
    return sorted(found.values())


def _busy(spans: Iterable[Span], gap_us: float) -> Iterator[tuple[float, float]]:
    """Yield when any of them is at work; gaps shorter than `gap_us`, a pixel, are none."""
    begin_us = end_us = None
    for span in sorted(spans, key=lambda each: each.begin_us):
        if begin_us is None or end_us is None:
            begin_us, end_us = span.begin_us, span.end_us
        elif span.begin_us > end_us + gap_us:
            yield begin_us, end_us
            begin_us, end_us = span.begin_us, span.end_us
        else:
            end_us = max(end_us, span.end_us)
    if begin_us is not None and end_us is not None:
        yield begin_us, end_us


def _legend(drawing: Drawing, y: float, trace: Timeline, batch: str, shown: int) -> None:
    x = _LEFT
    for role in ("prefill", "decode"):
        drawing.rect(x, y - 9, 18, 9, role)
        drawing.text(x + 24, y, role, size=12)
        x += 92
    chunk, _, decodes = batch.partition(" + ")
    gpu = f"{shown} of {trace.num_sms} SMs of an {trace.gpu}, {trace.source}"
    drawing.text(_WIDTH - _RIGHT, y, gpu, fill="dim", size=12, anchor="end")
    tokens, _, keys = chunk.partition("@")
    count, _, decode_keys = decodes.partition("x")
    drawing.text(
        _WIDTH - _RIGHT,
        y + 16,
        f"{tokens} tokens of a prompt at {keys} keys, beside {count} decodes of {decode_keys}",
        fill="dim",
        size=12,
        anchor="end",
    )


def main() -> None:
    """Read a record, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("timeline.svg"))
    arguments = parser.parse_args()
    draw(read_record(arguments.record)).save(arguments.out)


if __name__ == "__main__":
    main()
