"""A GPU that is not there: its times are those of the cost model with constants of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from podrt.bench.case import Case
from podrt.gpu.device import DeviceInfo
from podrt.gpu.nominal import H100
from podrt.kernels.hopper.config import HopperConfig
from podrt.policy.calibration import shipped_for
from podrt.policy.constants import LaunchCosts
from podrt.policy.cost import predict
from podrt.policy.policies import parse_policy
from podrt.tune.samples import schedule_of

#: Neither an H100 nor an H200.
OTHER = replace(
    shipped_for(H100).launch_costs,
    launch_us=11.0,
    unit_us=4.2,
    prefill_tflops_per_sm=(3.7, 4.9),
    fused_factor=1.08,
    read_gbs=(1900.0, 2100.0),
    fused_read_share=0.93,
    us_per_decoded_mb=12.0,
)


def fake_measure(
    costs: LaunchCosts, gpu: DeviceInfo = H100, *, noise: float = 0.01, seed: int = 0
) -> Callable[[Case], dict[str, float]]:
    """Return a `podrt.tune.measure.Measure` of a GPU with those constants, and some noise."""
    calibration = replace(shipped_for(gpu), launch_costs=costs)
    rng = np.random.default_rng(seed)

    def measure(case: Case) -> dict[str, float]:
        times_us = {}
        for name in case.policies:
            found = schedule_of(case, gpu, parse_policy(name))
            variants = cast(tuple[HopperConfig, ...], found.variants)
            launches = predict(found.plan, variants, gpu, calibration)
            time_us = sum(each.time_us for each in launches)
            times_us[name] = time_us * math.exp(rng.normal(0, noise))
        return times_us

    return measure
