"""How many SMs of a fused Hopper launch decode first, beside those that do both sides at once.

Beside prefill an SM decodes at about half its share of the memory's speed, so that memory is idle
in part as long as prefill lasts, which counts when decode is the longer side. An SM that decodes
alone has three lanes with a ring each and reads 2.5 times its share: a few of them fill the bus.
Prefill then takes longer on the others, but that is not what the launch waits for.
`design/hopper-kernel.md` has the measurements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.plan import Plan, WorkList

#: Prefill time over decode time, each alone, and the share of the SMs that then did best.
_TIME_RATIOS = (0.0, 0.3, 0.7, 1.0)
_BEST_SHARES = (0.0, 0.25, 0.15, 0.0)
#: What one SM reaches: prefill alone, and reading keys and values with all lanes.
_PREFILL_TFLOPS_PER_SM = 6.0
_DECODE_GBS_PER_SM = 85.0
#: Most that prefill may take on the SMs that are left, alone, in terms of decode's time: beside
#: decode it takes a fifth longer, and it should not outlast it by much.
_MOST_PREFILL = 0.92
#: Share of the memory's nominal bandwidth that reading reaches.
_READ_EFFICIENCY = 0.92
_ELEMENT_BYTES = 2


def decode_only_sms(plan: Plan, *, head_dim: int, num_sms: int, memory_gbs: float) -> int:
    """Return how many SMs should take no prefill before decode has run out.

    Parameters
    ----------
    plan : Plan
        Both sides of the batch.
    head_dim : int
        Elements of a head.
    num_sms : int
        SMs of the GPU.
    memory_gbs : float
        Nominal bandwidth of its memory, in GB/s.
    """
    read_gbs = _READ_EFFICIENCY * memory_gbs
    decode_us = _decode_bytes(plan, head_dim) / read_gbs / 1e3
    if decode_us == 0:
        return 0
    unit_us = _prefill_unit_us(plan, head_dim)
    ratio = _waves_us(unit_us, num_sms) / decode_us
    share = float(np.interp(ratio, _TIME_RATIOS, _BEST_SHARES))
    chosen = int(min(share * num_sms, read_gbs / _DECODE_GBS_PER_SM))
    while chosen and _waves_us(unit_us, num_sms - chosen) > _MOST_PREFILL * decode_us:
        chosen -= 1
    return chosen


def _prefill_unit_us(plan: Plan, head_dim: int) -> npt.NDArray[np.float64]:
    """Return the time of every prefill unit alone, longest first."""
    keys = np.repeat(_keys(plan.prefill), plan.num_kv_heads)
    flops_per_key = 4.0 * head_dim * plan.prefill_rows
    return keys * (flops_per_key / _PREFILL_TFLOPS_PER_SM / 1e6)


def _waves_us(unit_us: npt.NDArray[np.float64], num_sms: int) -> float:
    """Return the time of units in waves on so many SMs: the longest of each wave."""
    return float(unit_us[::num_sms].sum())


def _decode_bytes(plan: Plan, head_dim: int) -> float:
    keys = float(_keys(plan.decode).sum())
    return 2 * keys * plan.num_kv_heads * head_dim * _ELEMENT_BYTES


def _keys(items: WorkList) -> npt.NDArray[Any]:
    keys: npt.NDArray[Any] = (items["kv_end"] - items["kv_begin"]).astype(np.int64)
    return keys
