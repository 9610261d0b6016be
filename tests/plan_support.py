"""What the planner is told of a variant, for tests that plan by themselves."""

from __future__ import annotations

from podrt.kernels.families import Variant, family_of
from podrt.plan import Tiling
from podrt.policy.calibration import H200
from podrt.policy.policies import Policy
from podrt.policy.schedule import tiling_for

_CUTS = {"hopper": H200.hopper_cuts, "portable": H200.portable_cuts}


def tiling_of(config: Variant, num_sms: int, group: int) -> Tiling:
    """Return the tiling of a variant on so many SMs, as a schedule has it by default."""
    geometry = family_of(config).geometry_of(config, group, num_sms)
    return tiling_for(geometry, _CUTS[config.family], Policy())
