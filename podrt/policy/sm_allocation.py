"""How many SMs of a fused Hopper launch take one side first, beside those that do both at once.

Beside prefill an SM decodes at about half its share of the memory's speed, so that memory is idle
in part as long as prefill lasts, which counts when decode is the longer side. An SM that decodes
alone has three lanes with a ring each and reads 2.5 times its share: a few of them fill the bus.
Prefill then takes longer on the others, but that is not what the launch waits for.

Where prefill is the longer side and an SM has one tile of it, the launch waits for the longest
tiles. SMs that have those are better left to them, as long as the others can decode everything
meanwhile. They are those of the first CTAs: units that all run at once are handed out longest first
(`podrt.plan.order`). How long more of them take is estimated as if they were, whatever their order.
With more units some SMs begin with prefill too, so that its last wave does not wait for decode.
`bench/results/h200/NOTES.md` has the measurements, `podrt.policy.calibration` what came of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.plan import Plan
from podrt.policy.constants import SmSharing
from podrt.spec.types import ELEMENT_BYTES


class _Work(NamedTuple):
    """What there is to do: prefill items, the longest first, and what they and decode cost."""

    prefill_keys: npt.NDArray[np.int32]  # of each item
    num_kv_heads: int
    us_per_key: float  # of a prefill unit alone
    prefill_us: float  # of all on all SMs
    decode_bytes: int
    decode_us: float

    @property
    def num_units(self) -> int:
        """Units of prefill."""
        return len(self.prefill_keys) * self.num_kv_heads


@dataclass(frozen=True)
class SmAllocation:
    """Shares the SMs of one GPU between the sides of a plan.

    Attributes
    ----------
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

    num_sms: int
    memory_gbs: float
    speeds: SmSharing

    def __post_init__(self) -> None:
        if not self.memory_gbs > 0:
            raise ValueError(f"memory_gbs={self.memory_gbs}: must be greater than 0")

    def shares(self, plan: Plan) -> tuple[int, int]:
        """Return how many SMs take one side first: decode, and prefill; one of them is 0."""
        if not (plan.prefill_keys and plan.decode_keys):
            return 0, 0
        work = self._work(plan)
        decode_only = self._decode_only_sms(work)
        return (decode_only, 0) if decode_only else (0, self._prefill_only_sms(work))

    def why(self, plan: Plan) -> str:
        """Say what `shares` goes by, of a plan that has them."""
        if not (plan.prefill_keys and plan.decode_keys):
            return "a side without keys needs no SMs of its own"
        work = self._work(plan)
        share = work.prefill_us / work.decode_us
        ratio = f"prefill alone takes {share:.2f} of decode"
        if plan.decode_only_ctas:
            return f"{ratio}: {plan.decode_only_ctas} SMs decode first (SmSharing.best_shares)"
        if plan.prefill_only_ctas and work.num_units > self.num_sms:
            taking = f"{plan.prefill_only_ctas} SMs take prefill first"
            return f"{ratio}: {taking} (SmSharing.prefill_first_share)"
        if plan.prefill_only_ctas:
            longest = f"the SMs with the longest {plan.prefill_only_ctas} units"
            return f"{ratio}, in one wave: {longest} take no decode before those end"
        return f"{ratio}: no SMs take one side first (SmSharing.best_shares)"

    def _work(self, plan: Plan) -> _Work:
        elements = plan.spec.head_dim + plan.spec.value_dim  # of a key and its value
        flops_per_key = 2.0 * elements * plan.prefill_rows
        key_bytes = elements * ELEMENT_BYTES[plan.spec.dtype]
        items, heads = plan.prefill_longest_first(), plan.spec.num_kv_heads
        keys = items["kv_end"] - items["kv_begin"]
        us_per_key = flops_per_key / self.speeds.prefill_tflops_per_sm / 1e6
        decode_bytes = plan.decode_keys * heads * key_bytes
        prefill_us = _waves_keys(keys, heads, self.num_sms) * us_per_key
        decode_us = decode_bytes / (self.speeds.read_efficiency * self.memory_gbs) / 1e3
        return _Work(keys, heads, us_per_key, prefill_us, decode_bytes, decode_us)

    def _decode_only_sms(self, work: _Work) -> int:
        """Return how many SMs should take no prefill before decode has run out."""
        speeds, num_sms = self.speeds, self.num_sms
        read_gbs = speeds.read_efficiency * self.memory_gbs
        decode_us = work.decode_us
        ratio = work.prefill_us / decode_us
        share = _interpolated(ratio, speeds.time_ratios, speeds.best_shares)
        if decode_us < speeds.short_decode_us and ratio < speeds.time_ratios[-1]:
            share = max(share, speeds.short_share)
        wanted = int(min(share * num_sms, read_gbs / speeds.decode_gbs_per_sm))
        if not wanted:
            return 0
        most_keys = speeds.most_prefill * decode_us / work.us_per_key

        def are_enough(sms: int) -> bool:
            return _waves_keys(work.prefill_keys, work.num_kv_heads, sms) <= most_keys

        left = num_sms - wanted
        if not are_enough(left):  # prefill takes longer the fewer SMs are left for it
            left += bisect_left(range(left, num_sms), True, key=are_enough)
        return num_sms - left

    def _prefill_only_sms(self, work: _Work) -> int:
        """Return how many SMs take no decode before prefill ends."""
        fewest = 0
        if work.prefill_us >= self.speeds.time_ratios[-1] * work.decode_us:
            fewest = int(self.speeds.prefill_first_share * self.num_sms)
        return max(fewest, self._sms_of_longest(work))

    def _sms_of_longest(self, work: _Work) -> int:
        """Return how many SMs, in one wave those with the longest tiles, take no decode."""
        speeds, num_sms, num_units = self.speeds, self.num_sms, work.num_units
        if num_units > num_sms:
            return 0
        us_per_key = work.us_per_key * speeds.fused_slowdown
        longest_us = work.prefill_keys.item(0) * us_per_key
        decode_mb = work.decode_bytes / 1e6
        bus_gbs = speeds.beside_bus_share * speeds.read_efficiency * self.memory_gbs
        mb_per_sm = min(speeds.beside_gbs_per_sm, bus_gbs / num_sms) * longest_us / 1e3
        most = min(int(num_sms - decode_mb / mb_per_sm), num_units - 1)
        if most <= 0:
            return 0
        others = np.arange(num_sms, num_sms - most - 1, -1)
        beside_us = speeds.us_per_decoded_mb * decode_mb / others
        beside_us += work.prefill_keys.repeat(work.num_kv_heads)[: most + 1] * us_per_key
        return int(np.maximum(beside_us, longest_us).argmin())


def _waves_keys(keys: npt.NDArray[np.int32], num_kv_heads: int, num_sms: int) -> int:
    """Return the keys of units in waves on so many SMs, longest first: the longest of each wave."""
    num_units = len(keys) * num_kv_heads
    if num_units <= num_sms:
        return int(keys.item(0))
    firsts = np.arange(0, num_units, num_sms)
    firsts //= num_kv_heads
    return int(np.add.reduce(keys[firsts]))


def _interpolated(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    """Return what `numpy.interp` does, without its microseconds for small tables."""
    at = bisect_right(xs, x)
    if at in (0, len(xs)):
        return ys[0] if at == 0 else ys[-1]
    slope = (ys[at] - ys[at - 1]) / (xs[at] - xs[at - 1])
    return slope * (x - xs[at - 1]) + ys[at - 1]
