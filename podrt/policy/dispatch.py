"""The former place of `podrt.policy.policies` and of the tiling of a variant."""

from __future__ import annotations

from podrt.kernels.families import Variant
from podrt.kernels.hopper import tiles as hopper
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.portable import tiles as portable
from podrt.plan import Tiling
from podrt.policy.calibration import H200
from podrt.policy.policies import Policy, parse_policy
from podrt.policy.schedule import tiling_for

__all__ = ["Policy", "parse_policy", "tiling_of"]


def tiling_of(config: Variant, num_sms: int, group: int, policy: Policy | None = None) -> Tiling:
    """Return what the planner must know of a variant on a GPU of `num_sms` SMs."""
    if isinstance(config, HopperConfig):
        geometry, cuts = hopper.geometry_of(config, group, num_sms), H200.hopper_cuts
    else:
        geometry, cuts = portable.geometry_of(config, group, num_sms), H200.portable_cuts
    return tiling_for(geometry, cuts, policy or Policy())
