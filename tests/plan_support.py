"""What the planner is told of a variant, for tests that plan by themselves."""

from __future__ import annotations

from podrt.kernels.families import Variant
from podrt.kernels.hopper import tiles as hopper
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.portable import tiles as portable
from podrt.plan import Tiling
from podrt.policy.calibration import H200
from podrt.policy.policies import Policy
from podrt.policy.schedule import tiling_for


def tiling_of(config: Variant, num_sms: int, group: int) -> Tiling:
    """Return the tiling of a variant on so many SMs, as a schedule has it by default."""
    if isinstance(config, HopperConfig):
        return tiling_for(hopper.geometry_of(config, group, num_sms), H200.hopper_cuts, Policy())
    return tiling_for(portable.geometry_of(config, group, num_sms), H200.portable_cuts, Policy())
