"""What a sweep says: the fastest of each case, and what the automatic choice takes beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import geometric_mean
from typing import NamedTuple

from podrt.bench.case import Case
from podrt.bench.roofline import overlap_of
from podrt.bench.sweep.axes import AXES, natural, value_text
from podrt.bench.sweep.records import (
    AUTO,
    DECODE_ALONE,
    PREFILL_ALONE,
    SERIAL,
    Result,
    Sweep,
)
from podrt.bench.timing import TIE


@dataclass(frozen=True)
class CaseSummary:
    """The results of one case on one GPU.

    Attributes
    ----------
    case : Case
    results : tuple of Result
        Of all variants and baselines, right or not.
    """

    case: Case
    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        """Name of the case."""
        return self.case.name

    @cached_property
    def ranked(self) -> tuple[Result, ...]:
        """What is right and computes all of the case, the fastest first.

        Ordered by the time over that of the automatic choice in the same turns.
        """
        right = [each for each in self.results if each.status == "ok" and each.side == "both"]
        return tuple(sorted(right, key=lambda each: each.relative or each.time_us or 0.0))

    @property
    def unranked(self) -> tuple[Result, ...]:
        """What was wrong, failed or hung."""
        return tuple(each for each in self.results if each.status != "ok")

    @property
    def best(self) -> Result | None:
        """The fastest variant."""
        return self.ranked[0] if self.ranked else None

    @property
    def ties(self) -> tuple[str, ...]:
        """Names of the variants within 1 % of the fastest, that first."""
        least = self.regret_of(self.best)
        if least is None:
            return ()
        return tuple(
            each.variant for each in self.ranked if (self.regret_of(each) or 1.0) <= 1 + TIE
        )

    @property
    def auto(self) -> Result | None:
        """The automatic choice, where it is right."""
        return self._of(AUTO)

    @property
    def regret(self) -> float | None:
        """What the automatic choice takes over the fastest, 1 or more."""
        return self.regret_of(self.auto)

    def regret_of(self, result: Result | None) -> float | None:
        """Return what a variant takes over the fastest; None where it has no time."""
        best = self.best
        if result is None or best is None or result.time_us is None or best.time_us is None:
            return None
        if result.relative is not None and best.relative is not None:
            return result.relative / best.relative
        return result.time_us / best.time_us

    @property
    def sides_us(self) -> tuple[float | None, float | None]:
        """What prefill and decode take alone."""
        prefill, decode = (self._of(name) for name in (PREFILL_ALONE, DECODE_ALONE))
        return prefill.time_us if prefill else None, decode.time_us if decode else None

    @property
    def serial_us(self) -> float | None:
        """What one launch after the other takes."""
        serial = self._of(SERIAL)
        return serial.time_us if serial else None

    @property
    def decode_share(self) -> float | None:
        """Time of decode over that of both sides, each alone; None without both."""
        prefill_us, decode_us = self.sides_us
        if prefill_us is None or decode_us is None:
            return None
        return decode_us / (prefill_us + decode_us)

    def overlap_of(self, result: Result) -> float | None:
        """Return what share of the shorter side a variant hides: `podrt.bench.roofline`."""
        if result.time_us is None or result.side != "both":
            return None
        return overlap_of(self.case, self.sides_us, result.time_us)

    def _of(self, variant: str) -> Result | None:
        return next((r for r in self.results if r.variant == variant and r.status == "ok"), None)


class VariantSummary(NamedTuple):
    """One variant over all cases.

    Attributes
    ----------
    name : str
    cases : int
        In how many it has a time.
    geomean : float
        Of its time over that of the automatic choice.
    wins : int
        Cases in which it is within 1 % of the fastest.
    worst : float
        Largest time over that of the fastest.
    wrong : int
        Cases in which it was wrong, failed or hung.
    """

    name: str
    cases: int
    geomean: float
    wins: int
    worst: float
    wrong: int


class AxisEffect(NamedTuple):
    """A value of an axis: what the best of all combinations with it take.

    Attributes
    ----------
    axis, value : str
    cases : int
    geomean : float
        Over cases, of the best time with that value over the best time of all.
    """

    axis: str
    value: str
    cases: int
    geomean: float


def summarise(sweep: Sweep) -> list[CaseSummary]:
    """Return the cases of a sweep on one GPU, in the order in which they came."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in sweep.results:
        groups.setdefault((result.case, str(result.layer)), []).append(result)
    return [CaseSummary(group[0].to_case(), tuple(group)) for group in groups.values()]


def variant_summaries(cases: Sequence[CaseSummary]) -> list[VariantSummary]:
    """Return the variants that compute whole cases, the best in geomean first.

    Those without any time come last.
    """
    names = dict.fromkeys(r.variant for case in cases for r in case.results if r.side == "both")
    rows = [_variant_summary(name, cases) for name in names]
    return sorted(rows, key=lambda row: (-row.cases, row.geomean))


def _variant_summary(name: str, cases: Sequence[CaseSummary]) -> VariantSummary:
    relatives, regrets, wrong = [], [], 0
    for case in cases:
        for result in case.results:
            if result.variant != name:
                continue
            regret = case.regret_of(result)
            wrong += result.status != "ok"
            if regret is not None:
                regrets.append(regret)
                relatives.append(result.relative or regret)
    return VariantSummary(
        name,
        len(regrets),
        geometric_mean(relatives) if relatives else float("inf"),
        sum(regret <= 1 + TIE for regret in regrets),
        max(regrets, default=float("inf")),
        wrong,
    )


def axis_effects(cases: Sequence[CaseSummary]) -> list[AxisEffect]:
    """Return every value of every axis that takes several, the axes in order."""
    values: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        for axis, by_value in _least_regrets(case).items():
            for value, regret in by_value.items():
                values.setdefault(axis, {}).setdefault(value, []).append(regret)
    return [
        AxisEffect(axis, value, len(regrets), geometric_mean(regrets))
        for axis in AXES
        if len(values.get(axis, ())) > 1
        for value, regrets in sorted(values[axis].items(), key=lambda each: natural(each[0]))
    ]


def _least_regrets(case: CaseSummary) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for result in case.ranked:  # the fastest first
        regret = case.regret_of(result)
        for axis, value in result.combination.fixed:
            if regret is not None and result.variant not in (AUTO, SERIAL):
                found.setdefault(axis, {}).setdefault(value_text(value), regret)
    return found
