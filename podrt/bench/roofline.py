"""Both resources of a GPU at once: how near each measured launch came to them.

A fused launch does arithmetic for prefill and moves keys for decode; it is as good as the resource
that it uses most. Ceilings are those that were measured in the same run (`podrt.bench.ceilings`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.table import Table

from podrt.bench.case import Case
from podrt.bench.contenders import DECODE_ALONE, PREFILL_ALONE, SERIAL
from podrt.bench.plot import figure_class
from podrt.bench.results import Results
from podrt.bench.summary import CaseSummary, summarise
from podrt.bench.tables import empty_table

#: Policies that are shown where none is named.
USUAL_POLICIES = ("auto", SERIAL)
#: Policies that a picture tells apart.
_COLOURS = 8
#: How many names an error lists.
_SHOWN = 12


@dataclass(frozen=True)
class RooflinePoint:
    """One launch, or the launches of one policy, on one case.

    Attributes
    ----------
    case, policy : str
    time_us : float
    matmul_share : float
        Arithmetic of attention over what matrix products reach on this GPU.
    memory_share : float
        Bytes that must move over what reading reaches.
    overlap : float or None
        ``(t_prefill + t_decode - t) / min(t_prefill, t_decode)``: 1 where the shorter side costs
        nothing beside the longer one, 0 where they take turns. None for a batch of one side.
    """

    case: str
    policy: str
    time_us: float
    matmul_share: float
    memory_share: float
    overlap: float | None

    @property
    def waits_for(self) -> str:
        """The resource that is used most."""
        return "memory" if self.memory_share >= self.matmul_share else "matmul"

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain values, for JSON."""
        return {**asdict(self), "waits_for": self.waits_for}


def roofline(results: Results, policies: Sequence[str] = ("auto",)) -> list[RooflinePoint]:
    """Return the points of some policies, case by case.

    Raises
    ------
    ValueError
        The results have no ceilings, or no row of one of the policies; names the nearest.
    """
    ceilings = results.environment.get("ceilings")
    if not ceilings:
        raise ValueError("results: have no ceilings; measure them with podrt bench")
    require_measured("policy", policies, policies_of(results))
    summaries = summarise(results.rows)
    return [point for summary in summaries for point in _points(summary, policies, ceilings)]


def policies_of(results: Results) -> list[str]:
    """Return what was measured on any case, by name."""
    summaries = summarise(results.rows)
    return list(dict.fromkeys(name for summary in summaries for name in summary.times_us))


def require_measured(what: str, asked: Iterable[str], known: Sequence[str]) -> None:
    """Check that all that is asked for was measured.

    Raises
    ------
    ValueError
        One was not; names the nearest, or the first ones.
    """
    for name in asked:
        if name not in known:
            near = get_close_matches(name, known, n=4)
            more = f", {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
            told = (
                f"try {', '.join(near)}" if near else f"there are {', '.join(known[:_SHOWN])}{more}"
            )
            raise ValueError(f"{what}={name!r}: not measured; {told}")


def point_of(
    case: Case,
    policy: str,
    time_us: float,
    sides_us: tuple[float | None, float | None],
    ceilings: Mapping[str, float],
) -> RooflinePoint:
    """Return the point of a launch.

    Parameters
    ----------
    case : Case
    policy : str
    time_us : float
    sides_us : (float or None, float or None)
        What prefill and decode take alone.
    ceilings : mapping
        ``matmul_tflops`` and ``read_gbs``, as `podrt.bench.ceilings` measures them.
    """
    return RooflinePoint(
        case.name,
        policy,
        time_us,
        case.flops() / time_us / ceilings["matmul_tflops"] / 1e6,
        case.min_bytes() / time_us / ceilings["read_gbs"] / 1e3,
        overlap_of(case, sides_us, time_us),
    )


def overlap_of(
    case: Case, sides_us: tuple[float | None, float | None], time_us: float
) -> float | None:
    """Return the share of the shorter side that was hidden: `RooflinePoint.overlap`."""
    prefill_us, decode_us = sides_us
    if not case.is_hybrid or prefill_us is None or decode_us is None:
        return None
    return (prefill_us + decode_us - time_us) / min(prefill_us, decode_us)


def roofline_table(points: Sequence[RooflinePoint]) -> Table:
    """Return a line per point."""
    table = empty_table()
    table.add_column("case", overflow="fold")
    table.add_column("policy")
    for heading in ("us", "matmul", "memory"):
        table.add_column(heading, justify="right")
    table.add_column("waits for")
    table.add_column("overlap", justify="right")
    for point in points:
        table.add_row(
            point.case,
            point.policy,
            f"{point.time_us:.0f}",
            f"{point.matmul_share:.0%}",
            f"{point.memory_share:.0%}",
            point.waits_for,
            "-" if point.overlap is None else f"{point.overlap:.2f}",
        )
    return table


def plot_roofline(points: Sequence[RooflinePoint], title: str, path: Path) -> None:
    """Draw the points as a picture: PNG, SVG or what else the file's name ends with.

    Raises
    ------
    PodrtError
        There is no matplotlib; names the extra to install.
    """
    figure = figure_class()(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    for label, own in _coloured(points).items():
        axes.scatter(
            [point.memory_share for point in own],
            [point.matmul_share for point in own],
            label=label,
            **({} if label in {point.policy for point in own} else {"color": "0.75", "s": 9}),
        )
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set(
        xlim=(0, 1.1),
        ylim=(0, 1.1),
        xlabel="share of the memory's measured speed",
        ylabel="share of matrix products' measured speed",
        title=title,
    )
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _coloured(points: Sequence[RooflinePoint]) -> dict[str, list[RooflinePoint]]:
    """Return points by policy; of more policies than there are colours the usual ones alone.

    All others are one group, which comes first and so lies under them.
    """
    policies = list(dict.fromkeys(point.policy for point in points))
    shown = policies if len(policies) <= _COLOURS else list(USUAL_POLICIES)
    others = [point for point in points if point.policy not in shown]
    groups = {f"{len(policies) - len(shown)} others": others} if others else {}
    for policy in shown:
        groups[policy] = [point for point in points if point.policy == policy]
    return {label: own for label, own in groups.items() if own}


def _points(
    summary: CaseSummary, policies: Sequence[str], ceilings: Mapping[str, float]
) -> Iterator[RooflinePoint]:
    times_us = summary.times_us
    sides_us = times_us.get(PREFILL_ALONE), times_us.get(DECODE_ALONE)
    for policy in policies:
        time_us = times_us.get(policy)
        if time_us is not None:
            yield point_of(summary.case, policy, time_us, sides_us, ceilings)
