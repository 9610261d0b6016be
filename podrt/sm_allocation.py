"""How many SMs of a fused Hopper launch decode alone, beside those that do both sides at once.

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
_TIME_RATIOS = (0.0, 0.3, 1.0)
_BEST_SHARES = (0.0, 0.35, 0.0)
#: What one SM reaches: prefill alone, and reading keys and values with all lanes.
_PREFILL_TFLOPS_PER_SM = 5.8
_DECODE_GBS_PER_SM = 85.0
#: Share of the memory's nominal bandwidth that reading reaches.
_READ_EFFICIENCY = 0.92
_ELEMENT_BYTES = 2


def decode_only_sms(plan: Plan, *, head_dim: int, num_sms: int, memory_gbs: float) -> int:
    """Return how many SMs should take no prefill.

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
    prefill_us = _prefill_us(plan, head_dim, num_sms)
    decode_us = _decode_bytes(plan, head_dim) / read_gbs / 1e3
    if decode_us == 0:
        return 0
    share = float(np.interp(prefill_us / decode_us, _TIME_RATIOS, _BEST_SHARES))
    return int(min(share * num_sms, read_gbs / _DECODE_GBS_PER_SM))


def _prefill_us(plan: Plan, head_dim: int, num_sms: int) -> float:
    """Return the time of prefill alone, in waves of its units, longest first."""
    keys = np.repeat(_keys(plan.prefill), plan.num_kv_heads)
    flops = 4.0 * head_dim * plan.prefill_rows * keys[::num_sms].sum()
    return float(flops / _PREFILL_TFLOPS_PER_SM / 1e6)


def _decode_bytes(plan: Plan, head_dim: int) -> float:
    keys = float(_keys(plan.decode).sum())
    return 2 * keys * plan.num_kv_heads * head_dim * _ELEMENT_BYTES


def _keys(items: WorkList) -> npt.NDArray[Any]:
    keys: npt.NDArray[Any] = (items["kv_end"] - items["kv_begin"]).astype(np.int64)
    return keys
