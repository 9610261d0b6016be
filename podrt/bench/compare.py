"""What changed between two results files beyond noise."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import geometric_mean
from typing import Literal

from rich.table import Table
from rich.text import Text

from podrt.bench.environment import IDENTITY
from podrt.bench.results import Results, Row
from podrt.bench.tables import empty_table
from podrt.bench.timing import TIE

Verdict = Literal["faster", "slower", "same", "now fails", "now works"]

_STYLES = {"faster": "green", "now works": "green", "slower": "red", "now fails": "bold red"}


@dataclass(frozen=True)
class Change:
    """One case and policy in both files.

    Attributes
    ----------
    case, policy : str
    before_us, after_us : float or None
    verdict : str
        ``"same"`` unless the times differ by more than a tie and the middle halves of their samples
        do not overlap.
    """

    case: str
    policy: str
    before_us: float | None
    after_us: float | None
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """Time after over time before; None if either failed."""
        if self.before_us is None or self.after_us is None:
            return None
        return self.after_us / self.before_us


@dataclass(frozen=True)
class Comparison:
    """Two files set side by side.

    Attributes
    ----------
    changes : tuple of Change
        Everything that both hold.
    only_before, only_after : int
        Rows that one file lacks.
    environment : dict
        What differs in where they come from: ``{key: (before, after)}``.
    """

    changes: tuple[Change, ...]
    only_before: int
    only_after: int
    environment: dict[str, tuple[object, object]]


def compare(before: Results, after: Results) -> Comparison:
    """Set two results side by side, row by row."""
    old = {(row.case, row.policy): row for row in before.rows}
    new = {(row.case, row.policy): row for row in after.rows}
    both = [key for key in new if key in old]
    different = {
        key: (before.environment.get(key), after.environment.get(key))
        for key in IDENTITY
        if before.environment.get(key) != after.environment.get(key)
    }
    return Comparison(
        tuple(_change(old[key], new[key]) for key in both),
        only_before=len(old) - len(both),
        only_after=len(new) - len(both),
        environment=different,
    )


def comparison_table(comparison: Comparison) -> Table:
    """Return the rows that changed, the largest slow-down first."""
    table = empty_table()
    table.add_column("case", overflow="fold")
    table.add_column("policy")
    for heading in ("before us", "after us", "after / before"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    changed = [change for change in comparison.changes if change.verdict != "same"]
    for change in sorted(changed, key=lambda change: -(change.ratio or 0)):
        table.add_row(
            change.case,
            change.policy,
            _us(change.before_us),
            _us(change.after_us),
            "-" if change.ratio is None else f"{change.ratio:.3f}",
            Text(change.verdict, _STYLES[change.verdict]),
        )
    return table


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return the sentences under the table."""
    changes = comparison.changes
    lines = [f"{key}: {old} -> {new}" for key, (old, new) in comparison.environment.items()]
    same = sum(change.verdict == "same" for change in changes)
    lines.append(f"{len(changes)} rows in both files, {same} of them the same within noise")
    by_policy: dict[str, list[float]] = {}
    for change in changes:
        if change.ratio is not None:
            by_policy.setdefault(change.policy, []).append(change.ratio)
    lines += [
        f"{policy}: after / before geomean {geometric_mean(ratios):.3f} over {len(ratios)} cases"
        for policy, ratios in by_policy.items()
    ]
    if comparison.only_before or comparison.only_after:
        lines.append(
            f"{comparison.only_before} rows only in the first file, {comparison.only_after} only "
            "in the second"
        )
    return lines


def _change(before: Row, after: Row) -> Change:
    return Change(
        before.case, before.policy, before.time_us, after.time_us, _verdict(before, after)
    )


def _verdict(before: Row, after: Row) -> Verdict:
    if before.time_us is None or after.time_us is None:
        if before.time_us is after.time_us:
            return "same"
        return "now fails" if after.time_us is None else "now works"
    if abs(after.time_us / before.time_us - 1) <= TIE or _overlap(before, after):
        return "same"
    return "faster" if after.time_us < before.time_us else "slower"


def _overlap(before: Row, after: Row) -> bool:
    if before.quartiles_us is None or after.quartiles_us is None:
        return False
    return (
        before.quartiles_us[0] <= after.quartiles_us[1]
        and after.quartiles_us[0] <= before.quartiles_us[1]
    )


def _us(time_us: float | None) -> str:
    return "failed" if time_us is None else f"{time_us:.1f}"
