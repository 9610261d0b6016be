"""What each SM does when: measured by an instrumented build, or simulated without a GPU.

`podrt.bench.trace` measures. What `simulate` returns is a picture of the cost model and not a
measurement: units of prefill are placed as SMs would take them, decode is a span for each SM that
reads (`design/cost-model.md`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from podrt.errors import PodrtError, UnsupportedConfigError
from podrt.gpu.device import DeviceInfo
from podrt.kernels.hopper.config import HopperConfig
from podrt.policy.calibration import calibration_of
from podrt.policy.cost import (
    beside_each_other,
    decode_end_us,
    placed_units,
    work_of,
)
from podrt.policy.schedule import Schedule

Role = Literal["prefill", "decode"]
Source = Literal["simulated", "measured"]
ROLES: tuple[Role, ...] = ("prefill", "decode")


#: Between the rows of an SM in a trace, for units at which a role works at the same time.
_ROW_STEP = 1000


@dataclass(frozen=True)
class Span:
    """A role at work on an SM, in microseconds from the beginning.

    Attributes
    ----------
    sm : int
    role : {"prefill", "decode"}
        The side that the unit is of.
    begin_us, end_us : float
    item, kv_head : int or None
        The unit: place of its item in the plan's list of the role, and KV head; None where a span
        is no single unit.
    cta, warp : int
        Who worked on it: the CTA, and in it the first warp of those that did. Warpgroups of a fused
        Hopper kernel begin at 4 (decode), 8 and 12 (prefill; decode where there is none).
    """

    sm: int
    role: Role
    begin_us: float
    end_us: float
    item: int | None = None
    kv_head: int | None = None
    cta: int = 0
    warp: int = 0


@dataclass(frozen=True)
class Dry:
    """When a CTA first asked a role's queue for work and there was none."""

    sm: int
    role: Role
    at_us: float
    cta: int


@dataclass(frozen=True)
class Timeline:
    """The spans of one batch's launches.

    Attributes
    ----------
    gpu : str
    num_sms : int
    spans : tuple of Span
    source : {"simulated", "measured"}
    dry : tuple of Dry
        One for each CTA and queue; none of a simulation.
    lost_events : int
        Events that found no room: where there are any, spans are missing.
    """

    gpu: str
    num_sms: int
    spans: tuple[Span, ...]
    source: Source = "simulated"
    dry: tuple[Dry, ...] = ()
    lost_events: int = 0

    @property
    def end_us(self) -> float:
        """When the last span ends."""
        return max((span.end_us for span in self.spans), default=0.0)

    def summary(self) -> dict[str, float]:
        """Return what a glance at the picture would tell, shares of all SMs' time.

        ``prefill_busy``, ``decode_busy``, ``both_busy``: time in which a role, or both of them on
        one SM, are at work. ``idle``: neither. ``tail_us``: from where the first SM has nothing
        left to the end. ``idle_sms``: SMs that never work. Where it was
        measured, ``prefill_dry_us`` and ``decode_dry_us`` too: when a CTA first found that side's
        queue dry.
        """
        whole_us = self.num_sms * self.end_us or 1.0
        busy = {role: self._busy_us([role]) for role in ROLES}
        either_us = self._busy_us(ROLES)
        ends = {span.sm: 0.0 for span in self.spans}
        for span in self.spans:
            ends[span.sm] = max(ends[span.sm], span.end_us)
        dry_us: dict[str, float] = {}
        for mark in self.dry:
            name = f"{mark.role}_dry_us"
            dry_us[name] = min(dry_us.get(name, mark.at_us), mark.at_us)
        return {
            "end_us": self.end_us,
            "prefill_busy": busy["prefill"] / whole_us,
            "decode_busy": busy["decode"] / whole_us,
            "both_busy": max(sum(busy.values()) - either_us, 0.0) / whole_us,
            "idle": max(1 - either_us / whole_us, 0.0),
            "tail_us": self.end_us - min(ends.values(), default=0.0),
            "idle_sms": self.num_sms - len(ends),
            **dict(sorted(dry_us.items(), reverse=True)),
        }

    def chrome_trace(self) -> dict[str, Any]:
        """Return what ``chrome://tracing`` and Perfetto read: a process for each role.

        Its rows are SMs. A row shows one thing at a time: what a role does beside that on the same
        SM goes to rows 1000, 2000, .. further down; ``args`` has the SM itself.
        """
        events: list[dict[str, Any]] = [
            {
                "name": span.role,
                "ph": "X",
                "ts": span.begin_us,
                "dur": span.end_us - span.begin_us,
                "pid": span.role,
                "tid": span.sm + row * _ROW_STEP,
                **({} if span.item is None else {"args": _unit_of(span)}),
            }
            for span, row in zip(self.spans, _rows_of(self.spans), strict=True)
        ]
        events += [
            {
                "name": f"{mark.role} queue dry",
                "ph": "i",
                "s": "t",
                "ts": mark.at_us,
                "pid": mark.role,
                "tid": mark.sm,
            }
            for mark in self.dry
        ]
        return {"traceEvents": events, "otherData": {"gpu": self.gpu, "source": self.source}}

    def _busy_us(self, roles: Sequence[str]) -> float:
        """Return the time, over all SMs, in which any of the roles is at work."""
        by_sm: dict[int, list[tuple[float, float]]] = {}
        for span in self.spans:
            if span.role in roles:
                by_sm.setdefault(span.sm, []).append((span.begin_us, span.end_us))
        return sum(_covered_us(spans) for spans in by_sm.values())


def simulate(schedule: Schedule, gpu: DeviceInfo) -> Timeline:
    """Return the timeline that the cost model has of a batch.

    Raises
    ------
    UnsupportedConfigError
        The batch runs on kernels of the portable family, of which there is no model.
    """
    spans: list[Span] = []
    for variant in schedule.variants:
        if not isinstance(variant, HopperConfig):
            raise UnsupportedConfigError(
                f"{variant.name}: is of the portable family, of which there is no cost model"
            )
        begin_us = max((span.end_us for span in spans), default=0.0)
        spans += _launch(schedule, variant, gpu, begin_us)
    return Timeline(gpu.name, gpu.num_sms, tuple(spans))


def plot_timeline(timeline: Timeline, title: str, path: Path) -> None:
    """Draw SMs over time, a panel for each role: PNG, SVG or PDF by the file's name.

    Raises
    ------
    PodrtError
        There is no matplotlib; names the extra to install.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PodrtError("figures need matplotlib: pip install 'podrt[plot]'") from error
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, sharex=True)
    for axes, role, color in zip(panels, ROLES, ("tab:blue", "tab:orange"), strict=True):
        own = [span for span in timeline.spans if span.role == role]
        axes.barh(
            [span.sm for span in own],
            [span.end_us - span.begin_us for span in own],
            left=[span.begin_us for span in own],
            height=1.0,
            align="edge",
            color=color,
            edgecolor="white",
            linewidth=0.3,
        )
        dry = [mark for mark in timeline.dry if mark.role == role]
        if dry:
            axes.scatter(
                [mark.at_us for mark in dry],
                [mark.sm + 0.5 for mark in dry],
                s=4,
                color="tab:red",
                label=f"a CTA finds the {role} queue dry",
            )
            axes.legend(loc="lower left", fontsize=7)
        axes.set(ylabel=f"{role}, SM", ylim=(0, timeline.num_sms))
    panels[-1].set(xlabel="us", xlim=(0, timeline.end_us or 1))
    figure.suptitle(f"{title}\n{timeline.source}, {timeline.gpu}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _launch(
    schedule: Schedule, variant: HopperConfig, gpu: DeviceInfo, begin_us: float
) -> list[Span]:
    calibration, num_sms = calibration_of(gpu), gpu.num_sms
    work = work_of(schedule.plan, variant, gpu, calibration)
    beside = beside_each_other(work, variant, gpu, calibration)
    units = list(placed_units(work, num_sms, beside))
    prefill_us = max((unit.end_us for unit in units), default=0.0)
    spans = [
        Span(unit.sm, "prefill", begin_us + unit.begin_us, begin_us + unit.end_us) for unit in units
    ]
    if not work.decode_mb:
        return spans
    end_us = begin_us + decode_end_us(work, num_sms, beside, prefill_us, calibration)
    last_us = dict.fromkeys(range(work.prefill_only), begin_us)  # those decode when they are free
    for span in spans:
        if span.sm in last_us:
            last_us[span.sm] = max(last_us[span.sm], span.end_us)
    begins_us = {sm: last_us.get(sm, begin_us) for sm in range(num_sms)}
    return spans + [Span(sm, "decode", at, end_us) for sm, at in begins_us.items() if at < end_us]


def _rows_of(spans: Sequence[Span]) -> list[int]:
    """Return a row for each span, so that no two of an SM's role share one at the same time."""
    ends: dict[tuple[int, Role], list[float]] = {}
    found = [0] * len(spans)
    for number in sorted(range(len(spans)), key=lambda each: spans[each].begin_us):
        span = spans[number]
        rows = ends.setdefault((span.sm, span.role), [])
        free = (row for row, end_us in enumerate(rows) if end_us <= span.begin_us)
        found[number] = row = next(free, len(rows))
        rows[row : row + 1] = [span.end_us]
    return found


def _unit_of(span: Span) -> dict[str, Any]:
    return {
        "sm": span.sm,
        "cta": span.cta,
        "warp": span.warp,
        "item": span.item,
        "kv_head": span.kv_head,
    }


def _covered_us(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of what intervals cover together."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return covered
