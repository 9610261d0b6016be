"""How many SMs of a fused Hopper launch take one side first, beside those that do both at once.

Beside prefill an SM decodes at about half its share of the memory's speed, so that memory is idle
in part as long as prefill lasts, which counts when decode is the longer side. An SM that decodes
alone has three lanes with a ring each and reads 2.5 times its share: a few of them fill the bus.
Prefill then takes longer on the others, but that is not what the launch waits for.

Where prefill is the longer side and an SM has one tile of it, the launch waits for the longest
tiles. SMs that have those are better left to them, as long as the others can decode everything
meanwhile. Those are the first CTAs: units that all run at once are handed out longest first
(`podrt.plan.order`). How long more of them take is estimated as if they were, whatever their order.
`bench/results/h200/NOTES.md` has the measurements, `podrt.policy.calibration` what came of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from podrt.plan import Plan
from podrt.policy.calibration import SmSharing
from podrt.spec.types import ELEMENT_BYTES


@dataclass(frozen=True)
class SmAllocation:
    """Shares the SMs of one GPU between the sides of a plan.

    Attributes
    ----------
    head_dim : int
        Elements of a head.
    num_sms : int
        SMs of the GPU.
    memory_gbs : float
        Nominal bandwidth of its memory, in GB/s.
    speeds : SmSharing
        What one of its SMs reaches.

    Raises
    ------
    ValueError
        `memory_gbs` is not greater than 0.
    """

    head_dim: int
    num_sms: int
    memory_gbs: float
    speeds: SmSharing

    def __post_init__(self) -> None:
        if not self.memory_gbs > 0:
            raise ValueError(f"memory_gbs={self.memory_gbs}: must be greater than 0")

    def shares(self, plan: Plan) -> tuple[int, int]:
        """Return `decode_only_sms` and `prefill_only_sms`; one of them is 0."""
        if not (plan.prefill_keys and plan.decode_keys):
            return 0, 0
        decode_only = self.decode_only_sms(plan)
        return (decode_only, 0) if decode_only else (0, self.prefill_only_sms(plan))

    def decode_only_sms(self, plan: Plan) -> int:
        """Return how many SMs should take no prefill before decode has run out."""
        if not (plan.prefill_keys and plan.decode_keys):
            return 0
        speeds, num_sms, heads = self.speeds, self.num_sms, plan.num_kv_heads
        read_gbs = speeds.read_efficiency * self.memory_gbs
        decode_us = self._decode_bytes(plan) / read_gbs / 1e3
        keys, us_per_key = plan.prefill_keys_by_length(), self._us_per_prefill_key(plan)
        ratio = _waves_keys(keys, heads, num_sms) * us_per_key / decode_us
        share = _interpolated(ratio, speeds.time_ratios, speeds.best_shares)
        wanted = int(min(share * num_sms, read_gbs / speeds.decode_gbs_per_sm))
        most_keys = speeds.most_prefill * decode_us / us_per_key

        def are_enough(sms: int) -> bool:
            return _waves_keys(keys, heads, sms) <= most_keys

        left = num_sms - wanted
        if wanted and not are_enough(left):  # prefill takes longer the fewer SMs are left for it
            left += bisect_left(range(left, num_sms), True, key=are_enough)
        return num_sms - left

    def prefill_only_sms(self, plan: Plan) -> int:
        """Return how many SMs, those with the longest tiles, take no decode before prefill ends."""
        speeds, num_sms, num_units = self.speeds, self.num_sms, plan.num_prefill_units
        if not (plan.prefill_keys and plan.decode_keys) or num_units > num_sms:
            return 0
        us_per_key = self._us_per_prefill_key(plan) * speeds.fused_slowdown
        keys = plan.prefill_keys_by_length()
        longest_us = int(keys[0]) * us_per_key
        decode_mb = self._decode_bytes(plan) / 1e6
        bus_gbs = speeds.beside_bus_share * speeds.read_efficiency * self.memory_gbs
        mb_per_sm = min(speeds.beside_gbs_per_sm, bus_gbs / num_sms) * longest_us / 1e3
        most = min(int(num_sms - decode_mb / mb_per_sm), num_units - 1)
        if most <= 0:
            return 0
        others = np.arange(num_sms, num_sms - most - 1, -1)
        beside_us = speeds.us_per_decoded_mb * decode_mb / others
        beside_us += keys.repeat(plan.num_kv_heads)[: most + 1] * us_per_key
        return int(np.maximum(beside_us, longest_us).argmin())

    def _us_per_prefill_key(self, plan: Plan) -> float:
        """Return the time of a prefill unit alone for each of its keys."""
        flops_per_key = 4.0 * self.head_dim * plan.prefill_rows
        return flops_per_key / self.speeds.prefill_tflops_per_sm / 1e6

    def _decode_bytes(self, plan: Plan) -> int:
        row_bytes = self.head_dim * ELEMENT_BYTES[plan.spec.dtype]
        return 2 * plan.decode_keys * plan.num_kv_heads * row_bytes


def _waves_keys(keys: npt.NDArray[np.int64], units_per_item: int, num_sms: int) -> int:
    """Return the keys of units in waves on so many SMs: the longest of each wave."""
    num_units = len(keys) * units_per_item
    if num_units <= num_sms:
        return int(keys[0])
    firsts = np.arange(0, num_units, num_sms)
    firsts //= units_per_item
    return int(np.add.reduce(keys[firsts]))


def _interpolated(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    """Return what `numpy.interp` does, without its microseconds for small tables."""
    at = bisect_right(xs, x)
    if at in (0, len(xs)):
        return ys[0] if at == 0 else ys[-1]
    slope = (ys[at] - ys[at - 1]) / (xs[at] - xs[at - 1])
    return slope * (x - xs[at - 1]) + ys[at - 1]
