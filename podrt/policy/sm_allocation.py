"""How many SMs of a fused Hopper launch take one side first, beside those that do both at once.

Beside prefill an SM decodes at about half its share of the memory's speed, so that memory is idle
in part as long as prefill lasts, which counts when decode is the longer side. An SM that decodes
alone has three lanes with a ring each and reads 2.5 times its share: a few of them fill the bus.
Prefill then takes longer on the others, but that is not what the launch waits for.

Where prefill is the longer side and an SM has one tile of it, the launch waits for the longest
tiles. SMs that have those are better left to them, as long as the others can decode everything
meanwhile.
`design/hopper-kernel.md` has the measurements, `podrt.policy.calibration` what came of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from podrt.plan import Plan, keys_of
from podrt.policy.calibration import SmSharing

_ELEMENT_BYTES = 2


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
    """

    head_dim: int
    num_sms: int
    memory_gbs: float
    speeds: SmSharing

    def shares(self, plan: Plan) -> tuple[int, int]:
        """Return `decode_only_sms` and `prefill_only_sms`; one of them is 0."""
        if not (len(plan.prefill) and len(plan.decode)):
            return 0, 0
        decode_only = self.decode_only_sms(plan)
        return (decode_only, 0) if decode_only else (0, self.prefill_only_sms(plan))

    def decode_only_sms(self, plan: Plan) -> int:
        """Return how many SMs should take no prefill before decode has run out."""
        speeds = self.speeds
        read_gbs = speeds.read_efficiency * self.memory_gbs
        decode_us = self._decode_bytes(plan) / read_gbs / 1e3
        if decode_us == 0:
            return 0
        unit_us = self._prefill_unit_us(plan)
        ratio = _waves_us(unit_us, self.num_sms) / decode_us
        share = float(np.interp(ratio, speeds.time_ratios, speeds.best_shares))
        chosen = int(min(share * self.num_sms, read_gbs / speeds.decode_gbs_per_sm))
        most_us = speeds.most_prefill * decode_us
        while chosen and _waves_us(unit_us, self.num_sms - chosen) > most_us:
            chosen -= 1
        return chosen

    def prefill_only_sms(self, plan: Plan) -> int:
        """Return how many SMs, those with the longest tiles, take no decode before prefill ends."""
        speeds = self.speeds
        decode_mb = self._decode_bytes(plan) / 1e6
        if decode_mb == 0 or not 0 < plan.num_prefill_units <= self.num_sms:
            return 0
        unit_us = self._prefill_unit_us(plan) * speeds.fused_slowdown
        if unit_us[0] == 0:  # queries without keys
            return 0
        bus_gbs = speeds.beside_bus_share * speeds.read_efficiency * self.memory_gbs
        mb_per_sm = min(speeds.beside_gbs_per_sm, bus_gbs / self.num_sms) * unit_us[0] / 1e3
        most = min(int(self.num_sms - decode_mb / mb_per_sm), len(unit_us) - 1)
        if most <= 0:
            return 0
        numbers = np.arange(most + 1)
        beside_us = speeds.us_per_decoded_mb * decode_mb / (self.num_sms - numbers)
        return int(np.argmin(np.maximum(unit_us[numbers] + beside_us, unit_us[0])))

    def _prefill_unit_us(self, plan: Plan) -> npt.NDArray[np.float64]:
        """Return the time of every prefill unit alone, longest first, as they are taken."""
        keys = np.repeat(keys_of(plan.prefill), plan.num_kv_heads).astype(np.float64)
        flops_per_key = 4.0 * self.head_dim * plan.prefill_rows
        return keys * (flops_per_key / self.speeds.prefill_tflops_per_sm / 1e6)

    def _decode_bytes(self, plan: Plan) -> float:
        keys = float(keys_of(plan.decode).sum())
        return 2 * keys * plan.num_kv_heads * self.head_dim * _ELEMENT_BYTES


def _waves_us(unit_us: npt.NDArray[np.float64], num_sms: int) -> float:
    """Return the time of units in waves on so many SMs: the longest of each wave."""
    return float(unit_us[::num_sms].sum())
