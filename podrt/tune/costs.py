"""From measured launches to the constants of a GPU, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from podrt.bench.case import Case
from podrt.errors import UnsupportedConfigError
from podrt.gpu.device import DeviceInfo
from podrt.gpu.driver_version import driver_version
from podrt.kernels.families import Variant
from podrt.policy.calibration import shipped_for
from podrt.policy.constants import LaunchCosts
from podrt.policy.policies import parse_policy
from podrt.policy.tuned_costs import TunedCosts
from podrt.tune.fit import Fitter
from podrt.tune.launches import designed_cases
from podrt.tune.measure import Measure
from podrt.tune.samples import Sample, schedule_of, take_samples


@dataclass(frozen=True)
class Errors:
    """How far off predictions of one kind of launch are, as factors of 1 or more.

    Attributes
    ----------
    forms : str
        What kind: `Sample.forms`, or ``"all"``.
    launches : int
        How many.
    shipped, fitted : float
        In geomean, with the constants that podrt ships and with those fitted.
    worst : float
        The worst one with those fitted.
    """

    forms: str
    launches: int
    shipped: float
    fitted: float
    worst: float


@dataclass(frozen=True)
class CostFit:
    """Constants fitted to a GPU, beside those that podrt ships for it.

    Attributes
    ----------
    tuned : TunedCosts
        What was fitted, and its errors.
    shipped : LaunchCosts
        Where the fit began.
    errors : tuple of Errors
        By kind of launch, all together last.
    """

    tuned: TunedCosts
    shipped: LaunchCosts
    errors: tuple[Errors, ...]

    @property
    def is_better(self) -> bool:
        """Whether it predicts launches that it has not seen better than the shipped constants."""
        return self.tuned.held_out_error < self.tuned.shipped_error


def require_model(gpu: DeviceInfo) -> None:
    """Raise UnsupportedConfigError unless the cost model knows the kernels of a GPU."""
    if gpu.arch.name != "sm_90a":
        raise UnsupportedConfigError(
            f"{gpu.name} is of {gpu.arch.name}: the cost model knows the Hopper family alone, "
            "which needs sm_90a; podrt tune --shapes or --trace finds policies on any GPU"
        )


def variants_of(cases: Sequence[Case], gpu: DeviceInfo) -> tuple[Variant, ...]:
    """Return the kernels that cases are measured with, to be compiled beforehand."""
    found = [
        variant
        for case in cases
        for name in case.policies
        for variant in schedule_of(case, gpu, parse_policy(name)).variants
    ]
    return tuple(dict.fromkeys(found))


def fit_costs(
    gpu: DeviceInfo,
    measure: Measure,
    *,
    cases: Sequence[Case] | None = None,
    on_case: Callable[[], None] = lambda: None,
) -> CostFit:
    """Measure launches on a GPU and fit the cost model's constants to them.

    Parameters
    ----------
    gpu : DeviceInfo
        The GPU.
    measure : callable
        Times of a case's policies on it: `measure_policies`.
    cases : sequence of Case, optional
        What is measured; `designed_cases` if None.
    on_case : callable
        Called after each case.

    Raises
    ------
    UnsupportedConfigError
        The cost model does not know the GPU's kernels.
    """
    require_model(gpu)
    groups = take_samples(designed_cases() if cases is None else cases, gpu, measure, on_case)
    shipped = shipped_for(gpu)
    fitter, start = Fitter(gpu, shipped), shipped.launch_costs
    samples = _all_of(groups)
    costs = replace(fitter.fit(samples), gpu=gpu.name, source=_source())
    errors = _errors(fitter, samples, start, costs)
    tuned = TunedCosts(
        costs,
        launches=len(samples),
        error=errors[-1].fitted,
        held_out_error=_held_out_error(fitter, groups),
        shipped_error=errors[-1].shipped,
    )
    return CostFit(tuned, start, errors)


def _held_out_error(fitter: Fitter, groups: Sequence[Sequence[Sample]]) -> float:
    """Return how far off predictions of each half of the cases are, fitted to the other half."""
    logs = 0.0
    for seen, held_out in ((groups[::2], groups[1::2]), (groups[1::2], groups[::2])):
        costs = fitter.fit(_all_of(seen))
        logs += sum(abs(fitter.log_ratio(each, costs)) for each in _all_of(held_out))
    return math.exp(logs / len(_all_of(groups)))


def _all_of(groups: Sequence[Sequence[Sample]]) -> list[Sample]:
    return [sample for group in groups for sample in group]


def _errors(
    fitter: Fitter, samples: Sequence[Sample], start: LaunchCosts, costs: LaunchCosts
) -> tuple[Errors, ...]:
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.forms, []).append(sample)
    return tuple(
        Errors(
            forms,
            len(group),
            fitter.error(group, start),
            fitter.error(group, costs),
            max(fitter.error([each], costs) for each in group),
        )
        for forms, group in (*kinds.items(), ("all", list(samples)))
    )


def _source() -> str:
    day = datetime.now(UTC).date().isoformat()
    return f"podrt tune, {day}, driver {driver_version() or 'unknown'}"
