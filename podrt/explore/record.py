"""Timelines of one batch, under one policy or several, as one small file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from podrt.explore.timeline import ROLES, Dry, Span, Timeline

_FORMAT = "podrt timelines 1"
#: What a row of a file holds; a role is its place in `ROLES`.
_SPAN = ("sm", "role", "begin_ns", "duration_ns", "item", "kv_head", "cta", "warp")
_DRY = ("sm", "role", "at_ns", "cta")


@dataclass(frozen=True)
class TracedRun:
    """A batch's timeline under a policy, and what recording it cost.

    Attributes
    ----------
    policy : str
        As text.
    kernels : tuple of str
        Names of the variants, in the order of their launches.
    timeline : Timeline
    plain_us, traced_us : float or None
        Median times of the plain and of the instrumented build, which took turns; None of a
        simulation.
    """

    policy: str
    kernels: tuple[str, ...]
    timeline: Timeline
    plain_us: float | None = None
    traced_us: float | None = None

    @property
    def overhead(self) -> float | None:
        """What the instrumented build takes more, as a share of the plain one's time."""
        if self.plain_us is None or self.traced_us is None:
            return None
        return self.traced_us / self.plain_us - 1


@dataclass(frozen=True)
class TimelineRecord:
    """What a file holds.

    Attributes
    ----------
    batch : str
        Such as ``"2048@16384 + 64x16384"``.
    layer : mapping
        Heads, head_dim and the like, fit for JSON.
    runs : tuple of TracedRun
        The one that was asked for comes first, those beside it follow.
    environment : mapping
        Where it was measured; empty for a simulation.
    """

    batch: str
    layer: Mapping[str, Any]
    runs: tuple[TracedRun, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the file's text, a line for each run."""
        head = {
            "format": _FORMAT,
            "batch": self.batch,
            "layer": dict(self.layer),
            "environment": dict(self.environment),
            "span": _SPAN,
            "dry": _DRY,
        }
        runs = ",\n".join(json.dumps(_of_run(run), separators=(",", ":")) for run in self.runs)
        return f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{runs}\n]}}\n'


def read_record(path: Path) -> TimelineRecord:
    """Read a file that `TimelineRecord.to_json` made.

    Raises
    ------
    ValueError
        It is no such file, or of another format; names the file.
    """
    try:
        return record_of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: no timelines of podrt explore trace --record: {error!r}; write it again"
        ) from error


def record_of(data: Mapping[str, Any]) -> TimelineRecord:
    """Return what the JSON of a file holds; ValueError where it is of another format."""
    if data["format"] != _FORMAT:
        raise ValueError(f"format {data['format']!r}, expected {_FORMAT!r}")
    runs = tuple(_run_of(run) for run in data["runs"])
    if not runs:
        raise ValueError("no runs")
    return TimelineRecord(data["batch"], data["layer"], runs, data["environment"])


def _of_run(run: TracedRun) -> dict[str, Any]:
    timeline, overhead = run.timeline, run.overhead
    return {
        "policy": run.policy,
        "source": timeline.source,
        "gpu": timeline.gpu,
        "num_sms": timeline.num_sms,
        "kernels": run.kernels,
        "plain_us": run.plain_us,
        "traced_us": run.traced_us,
        "overhead": overhead if overhead is None else round(overhead, 4),
        "lost_events": timeline.lost_events,
        "summary": {name: round(value, 4) for name, value in timeline.summary().items()},
        "spans": [_row_of(span) for span in timeline.spans],
        "dry": [[each.sm, _role(each.role), _ns(each.at_us), each.cta] for each in timeline.dry],
    }


def _row_of(span: Span) -> list[int | None]:
    begin_ns = _ns(span.begin_us)
    times = begin_ns, _ns(span.end_us) - begin_ns
    return [span.sm, _role(span.role), *times, span.item, span.kv_head, span.cta, span.warp]


def _run_of(run: Mapping[str, Any]) -> TracedRun:
    dry = (Dry(sm, ROLES[role], at_ns / 1e3, cta) for sm, role, at_ns, cta in run["dry"])
    timeline = Timeline(
        run["gpu"],
        run["num_sms"],
        tuple(_span_of(row) for row in run["spans"]),
        run["source"],
        tuple(dry),
        run["lost_events"],
    )
    times = run["plain_us"], run["traced_us"]
    return TracedRun(run["policy"], tuple(run["kernels"]), timeline, *times)


def _span_of(row: Sequence[Any]) -> Span:
    sm, role, begin_ns, duration_ns, *unit = row
    return Span(sm, ROLES[role], begin_ns / 1e3, (begin_ns + duration_ns) / 1e3, *unit)


def _role(name: str) -> int:
    return ROLES.index(name)


def _ns(time_us: float) -> int:
    return round(time_us * 1e3)
