"""Fit the constants of the cost model to samples: coordinate descent on the squared log ratio.

Each constant in turn is multiplied or divided by a step of its own, which grows while that helps
and shrinks while it does not. Samples do not tell all constants apart (`design/cost-model.md`); a
slight pull towards where the fit began decides between those that predict alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, cast

from podrt.gpu.device import DeviceInfo
from podrt.kernels.hopper.config import HopperConfig
from podrt.policy.constants import Calibration, LaunchCosts, Measured, weights_of
from podrt.policy.cost import Load, costed, load_of, predict_work
from podrt.tune.samples import Sample

_FIRST_STEP = 1.1
_SMALL_STEP, _LAST_STEP = 1.02, 1.002
_MAX_ROUNDS = 40
#: A round of small steps that leaves so much of the squares was the last one.
_NO_GAIN = 0.998
#: Weight of the squared logarithm of how far a constant went, against that of one sample's ratio.
_PULL = 0.01
#: No fit makes a fused launch read more than reading alone.
_MOST = {"fused_read_share": 1.0}

#: Forms whose time depends on a constant; all, where it is not here.
_FORMS = {
    "unit_us": ("prefill", "pod"),
    "prefill_merge_us": ("prefill", "pod"),
    "decode_merge_us": ("decode", "pod"),
    "prefill_tflops_per_sm": ("prefill", "pod"),
    "large_tile_factor": ("prefill",),
    "fused_factor": ("pod",),
    "fused_read_share": ("pod",),
    "us_per_decoded_mb": ("pod",),
    "drift": ("pod",),
}


class Constant(NamedTuple):
    """A field of `LaunchCosts`, or one of the pair that it holds for head_dim 64 and 128."""

    name: str
    at: int | None = None

    def of(self, costs: LaunchCosts) -> float:
        """Return its value."""
        value = getattr(costs, self.name)
        return float(value if self.at is None else value[self.at])

    def put(self, costs: LaunchCosts, value: float) -> LaunchCosts:
        """Return the costs with another value."""
        if self.at is None:
            return _replaced(costs, self.name, value)
        pair = list(getattr(costs, self.name))
        pair[self.at] = value
        return _replaced(costs, self.name, tuple(pair))

    def concerns(self, sample: Sample) -> bool:
        """Whether the prediction of a sample may depend on it."""
        forms = _FORMS.get(self.name)
        variants = cast(tuple[HopperConfig, ...], sample.schedule.variants)
        return any(
            (forms is None or each.form in forms)
            and (self.at is None or weights_of(each.head_dim)[self.at] > 0)
            for each in variants
        )


def _replaced(costs: LaunchCosts, name: str, value: object) -> LaunchCosts:
    return replace(costs, **{name: value})  # type: ignore[arg-type]


def constants() -> Iterator[Constant]:
    """Yield all that can be fitted."""
    told = {field.name for field in fields(Measured)}
    for field in fields(LaunchCosts):
        if field.name in told:
            continue
        if "tuple" in str(field.type):
            yield from (Constant(field.name, index) for index in (0, 1))
        else:
            yield Constant(field.name)


class _Loaded(NamedTuple):
    """A sample's launches with what each has to do, which no constant changes, and its time."""

    launches: Sequence[tuple[HopperConfig, Load]]
    time_us: float


@dataclass(frozen=True)
class Fitter:
    """Fits a GPU's constants, beginning with those of a calibration."""

    gpu: DeviceInfo
    calibration: Calibration

    def log_ratio(self, sample: Sample, costs: LaunchCosts) -> float:
        """Return the logarithm of predicted over measured time."""
        return self._log_ratio(self._loaded(sample), costs)

    def _loaded(self, sample: Sample) -> _Loaded:
        plan, calibration = sample.schedule.plan, self.calibration
        variants = cast(tuple[HopperConfig, ...], sample.schedule.variants)
        loads = [(each, load_of(plan, each, self.gpu, calibration)) for each in variants]
        return _Loaded(loads, sample.time_us)

    def _log_ratio(self, loaded: _Loaded, costs: LaunchCosts) -> float:
        calibration, predicted_us = replace(self.calibration, launch_costs=costs), 0.0
        for variant, load in loaded.launches:
            work = costed(load, variant, self.gpu, costs)
            predicted_us += predict_work(work, variant, self.gpu, calibration).time_us
        return math.log(predicted_us / loaded.time_us)

    def error(self, samples: Sequence[Sample], costs: LaunchCosts) -> float:
        """Return the geomean of the factors, 1 or more, by which predictions are off."""
        return math.exp(sum(abs(self.log_ratio(each, costs)) for each in samples) / len(samples))

    def fit(self, samples: Sequence[Sample]) -> LaunchCosts:
        """Return the constants whose predictions of some samples are nearest."""
        start = costs = self.calibration.launch_costs
        loaded = [self._loaded(each) for each in samples]
        squares = [self._log_ratio(each, costs) ** 2 for each in loaded]
        coordinates = [_Coordinate(each, samples, start) for each in constants()]
        off = sum(squares)
        for _ in range(_MAX_ROUNDS):
            for coordinate in coordinates:
                costs = self._descend(coordinate, costs, loaded, squares)
            before, off = off, sum(squares)
            if off > _NO_GAIN * before and all(each.step < _SMALL_STEP for each in coordinates):
                break
        return costs

    def _descend(
        self,
        coordinate: _Coordinate,
        costs: LaunchCosts,
        loaded: Sequence[_Loaded],
        squares: list[float],
    ) -> LaunchCosts:
        """Move along one constant if that helps; `squares` follow."""
        concerned = coordinate.concerned
        if not concerned or coordinate.step < _LAST_STEP:
            return costs
        before = sum(squares[at] for at in concerned) + coordinate.pull(costs)
        for trial in coordinate.trials(costs):
            found = [self._log_ratio(loaded[at], trial) ** 2 for at in concerned]
            if sum(found) + coordinate.pull(trial) < before:
                for at, square in zip(concerned, found, strict=True):
                    squares[at] = square
                coordinate.moved(trial, costs)
                return trial
        coordinate.step = math.sqrt(coordinate.step)
        return costs


class _Coordinate:
    """One constant: the samples that depend on it, its step, and where it last went."""

    def __init__(self, constant: Constant, samples: Sequence[Sample], start: LaunchCosts) -> None:
        self._constant, self._start = constant, constant.of(start)
        self._up = True
        self.concerned = [at for at, each in enumerate(samples) if constant.concerns(each)]
        self.step = _FIRST_STEP if self.concerned else 1.0

    def pull(self, costs: LaunchCosts) -> float:
        """Return what being away from the start costs."""
        return _PULL * math.log(self._constant.of(costs) / self._start) ** 2

    def trials(self, costs: LaunchCosts) -> Iterator[LaunchCosts]:
        """Yield a step each way, the way of the last one first."""
        value, most = self._constant.of(costs), _MOST.get(self._constant.name, math.inf)
        for up in (self._up, not self._up):
            there = min(value * self.step if up else value / self.step, most)
            if there != value:
                yield self._constant.put(costs, there)

    def moved(self, to: LaunchCosts, of: LaunchCosts) -> None:
        """Go on the same way, further."""
        self._up = self._constant.of(to) > self._constant.of(of)
        self.step **= 1.5
