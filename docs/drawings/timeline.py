"""Draws two launches of a batch, one below the other: SMs over time, each with both of its roles.

    podrt explore trace BATCH --gpu h100 --policy serial --chrome serial.json
    podrt explore trace BATCH --gpu h100 --chrome fused.json
    python docs/drawings/timeline.py serial.json fused.json --batch BATCH

writes timeline.svg beside this file, which is the picture of the README. Traces say themselves
whether they were simulated or measured.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svg import Drawing

_SHOWN_SMS = 12
_WIDTH, _LEFT, _RIGHT = 880, 62, 14
_ROW, _GAP = 13, 2
_PANEL = _SHOWN_SMS * (_ROW + _GAP)


@dataclass(frozen=True)
class Trace:
    """Spans ``(sm, role, begin_us, end_us)`` of a launch, and where they are from."""

    spans: tuple[tuple[int, str, float, float], ...]
    gpu: str
    source: str

    @property
    def end_us(self) -> float:
        """When the last span ends."""
        return max(end for *_, end in self.spans)

    @property
    def sms(self) -> list[int]:
        """SMs that have spans."""
        return sorted({sm for sm, *_ in self.spans})


def read_trace(path: Path) -> Trace:
    """Read what ``podrt explore trace --chrome`` wrote."""
    trace = json.loads(path.read_text(encoding="utf-8"))
    spans = tuple(
        (_sm_of(event), str(event["pid"]), event["ts"], event["ts"] + event["dur"])
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event["pid"] in ("prefill", "decode")
    )
    return Trace(spans, trace["otherData"]["gpu"], trace["otherData"]["source"])


def _sm_of(event: dict[str, Any]) -> int:
    """Return the SM of an event, whose row is another one where the SM does two things at once."""
    return int(event.get("args", {}).get("sm", event["tid"]))


def draw(serial: Trace, fused: Trace, batch: str) -> Drawing:
    """Return the drawing of both."""
    drawing = Drawing(
        _WIDTH,
        2 * (_PANEL + 40) + 30,
        f"{batch} on an {fused.gpu}: one after the other takes {serial.end_us:.0f} us, "
        f"in one launch {fused.end_us:.0f} us ({fused.source})",
    )
    scale = (_WIDTH - _LEFT - _RIGHT) / max(serial.end_us, fused.end_us)
    shown = [fused.sms[i * len(fused.sms) // _SHOWN_SMS] for i in range(_SHOWN_SMS - 1)]
    shown.append(fused.sms[-1])
    _panel(drawing, 26, serial, shown, scale, "two launches, prefill and then decode")
    _panel(drawing, 26 + _PANEL + 40, fused, shown, scale, "one launch: podrt")
    _legend(drawing, 2 * (_PANEL + 40) + 10, fused, batch, len(shown))
    return drawing


def _panel(
    drawing: Drawing, top: float, trace: Trace, shown: list[int], scale: float, title: str
) -> None:
    drawing.text(_LEFT, top - 8, title, bold=True)
    end = _LEFT + trace.end_us * scale
    drawing.text(end, top - 8, f"{trace.end_us:.0f} us", bold=True, anchor="end")
    rows = {sm: top + row * (_ROW + _GAP) for row, sm in enumerate(shown)}
    for row, (sm, y) in enumerate(rows.items()):
        drawing.rect(_LEFT, y, trace.end_us * scale, _ROW, "panel")
        if row % 4 == 0 or row == len(rows) - 1:
            drawing.text(_LEFT - 7, y + 10, f"SM {sm}", fill="dim", size=10.5, anchor="end")
    for sm, role, begin_us, end_us in trace.spans:
        if sm in rows:
            y = rows[sm] + (0 if role == "prefill" else _ROW / 2)
            width = max((end_us - begin_us) * scale - 0.8, 0.5)
            drawing.rect(_LEFT + begin_us * scale, y, width, _ROW / 2, role)
    drawing.line([(end, top - 3), (end, top + _PANEL)], "ink")


def _legend(drawing: Drawing, y: float, trace: Trace, batch: str, shown: int) -> None:
    x = _LEFT
    for role in ("prefill", "decode"):
        drawing.rect(x, y - 9, 18, 9, role)
        drawing.text(x + 24, y, role, size=12)
        x += 92
    chunk, _, decodes = batch.partition(" + ")
    gpu = f"{shown} of {len(trace.sms)} SMs of an {trace.gpu}, {trace.source}"
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
    """Read two traces, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("serial", type=Path)
    parser.add_argument("fused", type=Path)
    parser.add_argument("--batch", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("timeline.svg"))
    arguments = parser.parse_args()
    traces = read_trace(arguments.serial), read_trace(arguments.fused)
    draw(*traces, arguments.batch).save(arguments.out)


if __name__ == "__main__":
    main()
