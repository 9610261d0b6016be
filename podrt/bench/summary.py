"""What the rows of a results file say about each case, and about all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from statistics import geometric_mean

from podrt.bench.case import Case
from podrt.bench.contenders import (
    AUTO,
    DECODE_ALONE,
    FAMILY_SERIAL,
    PREFILL_ALONE,
    SERIAL,
    is_candidate,
    is_green,
)
from podrt.bench.results import Row
from podrt.bench.timing import best_and_ties

#: POD-Attention's filter: each side takes at least this share of serial.
_BALANCED_SHARE = 0.2


@dataclass(frozen=True)
class CaseSummary:
    """One case's rows, seen from the automatic choice."""

    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Name of the case."""
        return self.rows[0].case

    @cached_property
    def case(self) -> Case:
        """The case itself."""
        return self.rows[0].to_case()

    @cached_property
    def times_us(self) -> dict[str, float]:
        """Times of podrt's contenders that have one, by policy."""
        return {row.policy: row.time_us for row in self.rows if row.time_us is not None}

    @property
    def auto_us(self) -> float | None:
        """Time of the automatic choice."""
        return self.times_us.get(AUTO)

    @property
    def best(self) -> list[str]:
        """Fastest candidates, launches apart included: the best one, then those that tie."""
        candidates = {name: us for name, us in self.times_us.items() if is_candidate(name)}
        return best_and_ties(candidates) if candidates else []

    @property
    def best_us(self) -> float | None:
        """Time of the fastest candidate."""
        return self.times_us[self.best[0]] if self.best else None

    @property
    def green_us(self) -> float | None:
        """Time of the two sides on parts of the SMs, with the split that is best for the case."""
        return min((us for name, us in self.times_us.items() if is_green(name)), default=None)

    @property
    def regret(self) -> float | None:
        """Time of the automatic choice over that of the fastest candidate, itself included."""
        return self.auto_us / self.best_us if self.auto_us and self.best_us else None

    @property
    def predicted_us(self) -> float | None:
        """What was predicted of the automatic choice."""
        return next((row.predicted_us for row in self.rows if row.policy == AUTO), None)

    @property
    def predicted_ratios(self) -> list[float]:
        """Predicted over measured time of each contender that has both."""
        return [
            row.predicted_us / row.time_us for row in self.rows if row.predicted_us and row.time_us
        ]

    @property
    def tflops(self) -> float | None:
        """Arithmetic rate of the automatic choice."""
        return self.case.flops() / self.auto_us / 1e6 if self.auto_us else None

    @property
    def gbs(self) -> float | None:
        """Memory rate of the automatic choice: the fewest bytes that must move over the time."""
        return self.case.min_bytes() / self.auto_us / 1e3 if self.auto_us else None

    @property
    def max_rel_err(self) -> float | None:
        """Largest error of any contender."""
        errors = [row.max_rel_err for row in self.rows if row.max_rel_err is not None]
        return max(errors, default=None)

    @property
    def is_balanced(self) -> bool:
        """Whether each side alone takes at least a fifth of serial."""
        serial_us = self.times_us.get(SERIAL)
        sides = [self.times_us.get(side) for side in (PREFILL_ALONE, DECODE_ALONE)]
        return serial_us is not None and all(
            us is not None and us >= _BALANCED_SHARE * serial_us for us in sides
        )

    def speedup_over(self, other_us: float | None) -> float | None:
        """Return another time over that of the automatic choice."""
        return other_us / self.auto_us if other_us and self.auto_us else None

    @property
    def over_serial(self) -> float | None:
        """podrt's own serial time over the automatic choice's."""
        return self.speedup_over(self.rows[0].own_serial_us)

    def errors(self) -> dict[str, str]:
        """Return what failed, by contender, and why."""
        mine = {row.policy: row.error for row in self.rows if row.error}
        return {**mine, **self.rows[0].peer_errors}


def summarise(rows: Iterable[Row]) -> list[CaseSummary]:
    """Group rows by case, in the order of the cases."""
    return [CaseSummary(tuple(group)) for _name, group in groupby(rows, key=lambda row: row.case)]


def peer_names(summaries: Sequence[CaseSummary]) -> list[str]:
    """Return the peers' contenders that do a whole hybrid batch, or the only side of a case."""
    names = dict.fromkeys(name for summary in summaries for name in summary.rows[0].peers_us)
    hybrid = any(summary.case.is_hybrid for summary in summaries)
    return [name for name in names if not (hybrid and name.endswith("alone"))]


def headlines(summaries: Sequence[CaseSummary]) -> list[str]:
    """Return the sentences that a suite is summed up in; each states what it is a mean of."""
    lines = _gains(summaries, AUTO, SERIAL)
    policies = dict.fromkeys(name for summary in summaries for name in summary.times_us)
    for serial in (name for name in policies if name.endswith(FAMILY_SERIAL)):
        lines += _gains(summaries, serial.removesuffix(FAMILY_SERIAL), serial)
    regrets = [s.regret for s in summaries if s.regret is not None]
    if regrets:
        lines.append(
            f"auto / best of all candidates: geomean {geometric_mean(regrets):.3f}, worst "
            f"{max(regrets):.3f} of {len(regrets)} cases"
        )
    lines += _predictions(summaries)
    for name in peer_names(summaries):
        ratios = [s.speedup_over(s.rows[0].peers_us.get(name)) for s in summaries]
        known = [ratio for ratio in ratios if ratio is not None]
        if known:
            lines.append(
                f"{name} / auto: geomean {geometric_mean(known):.3f} over {len(known)} cases"
            )
    return lines


def _predictions(summaries: Sequence[CaseSummary]) -> list[str]:
    """Say how far off predictions are, whichever way."""
    factors = [max(ratio, 1 / ratio) for s in summaries for ratio in s.predicted_ratios]
    if not factors:
        return []
    return [
        f"predicted against measured: off by {geometric_mean(factors) - 1:.1%} in geomean, "
        f"{max(factors) - 1:.1%} at worst of {len(factors)} contenders"
    ]


def _gains(summaries: Sequence[CaseSummary], fused: str, serial: str) -> list[str]:
    """Say how much faster a policy is than the serial form of the same kernels."""
    both = [s for s in summaries if {fused, serial} <= s.times_us.keys()]
    gains = [s.times_us[serial] / s.times_us[fused] for s in both]
    balanced = [gain for s, gain in zip(both, gains, strict=True) if s.is_balanced]
    lines = []
    if balanced:
        lines.append(
            f"{serial} / {fused}: geomean {geometric_mean(balanced):.3f} over {len(balanced)} "
            f"cases where each side is at least {_BALANCED_SHARE:.0%} of serial, "
            f"peak {max(balanced):.3f}"
        )
    if gains:
        lines.append(f"{serial} / {fused}: least {min(gains):.3f} of {len(gains)} cases")
    return lines
