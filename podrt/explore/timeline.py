"""What each SM does when, in a launch that was simulated by the cost model: no GPU needed.

It is a picture of the model and not a measurement: units of prefill are placed as SMs would take
them, decode is a span for each SM that reads (`design/cost-model.md`).
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
ROLES: tuple[Role, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class Span:
    """A role at work on an SM, in microseconds from the beginning."""

    sm: int
    role: Role
    begin_us: float
    end_us: float


@dataclass(frozen=True)
class Timeline:
    """The spans of one batch's launches.

    Attributes
    ----------
    gpu : str
    num_sms : int
    spans : tuple of Span
    """

    gpu: str
    num_sms: int
    spans: tuple[Span, ...]

    @property
    def end_us(self) -> float:
        """When the last span ends."""
        return max((span.end_us for span in self.spans), default=0.0)

    def summary(self) -> dict[str, float]:
        """Return what a glance at the picture would tell, shares of all SMs' time.

        ``prefill_busy``, ``decode_busy``, ``both_busy``: time in which a role, or both of them on
        one SM, are at work. ``idle``: neither. ``tail_us``: from where the first SM has nothing
        left to the end. ``idle_sms``: SMs that never work.
        """
        whole_us = self.num_sms * self.end_us or 1.0
        busy = {role: self._busy_us([role]) for role in ROLES}
        either_us = self._busy_us(ROLES)
        ends = {span.sm: 0.0 for span in self.spans}
        for span in self.spans:
            ends[span.sm] = max(ends[span.sm], span.end_us)
        return {
            "end_us": self.end_us,
            "prefill_busy": busy["prefill"] / whole_us,
            "decode_busy": busy["decode"] / whole_us,
            "both_busy": max(sum(busy.values()) - either_us, 0.0) / whole_us,
            "idle": max(1 - either_us / whole_us, 0.0),
            "tail_us": self.end_us - min(ends.values(), default=0.0),
            "idle_sms": self.num_sms - len(ends),
        }

    def chrome_trace(self) -> dict[str, Any]:
        """Return what ``chrome://tracing`` and Perfetto read: a row for each SM's role."""
        events = [
            {
                "name": span.role,
                "ph": "X",
                "ts": span.begin_us,
                "dur": span.end_us - span.begin_us,
                "pid": span.role,
                "tid": span.sm,
            }
            for span in self.spans
        ]
        return {"traceEvents": events, "otherData": {"gpu": self.gpu, "source": "simulated"}}

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
        axes.set(ylabel=f"{role}, SM", ylim=(0, timeline.num_sms))
    panels[-1].set(xlabel="us", xlim=(0, timeline.end_us or 1))
    figure.suptitle(f"{title}\nsimulated, {timeline.gpu}", fontsize=10)
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


def _covered_us(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of what intervals cover together."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return covered
