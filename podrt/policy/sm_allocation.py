"""How many SMs of a fused Hopper launch take one side first, beside those that do both at once.

Beside prefill an SM decodes at about half its share of the memory's speed, so that memory is idle
in part as long as prefill lasts, which counts when decode is the longer side. An SM that decodes
alone has three lanes with a ring each and reads 2.5 times its share: a few of them fill the bus.
Prefill then takes longer on the others, but that is not what the launch waits for.

Where prefill is the longer side and an SM has one tile of it, the launch waits for the longest
tiles. SMs that have those are better left to them, as long as the others can decode everything
meanwhile.
`design/hopper-kernel.md` has the measurements.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from podrt.plan import Plan, keys_of

#: Prefill time over decode time, each alone, and the share of the SMs that then did best.
_TIME_RATIOS = (0.2, 0.36, 0.6, 0.75)
_BEST_SHARES = (0.0, 0.25, 0.13, 0.0)
#: What one SM reaches: prefill alone, and reading keys and values with all lanes.
_PREFILL_TFLOPS_PER_SM = 6.0
_DECODE_GBS_PER_SM = 85.0
#: Most that prefill may take on the SMs that are left, alone, in terms of decode's time: beside
#: decode it takes a fifth longer, and it should not outlast it by much.
_MOST_PREFILL = 0.92
#: Share of the memory's nominal bandwidth that reading reaches.
_READ_EFFICIENCY = 0.92
#: By how much the SMs' lower clock prolongs prefill when the other side works too; by how much
#: decode on the same SM does; and what one SM decodes beside prefill, at most a share of the bus.
_FUSED_SLOWDOWN = 1.12
_US_PER_DECODED_MB = 2.5
_BESIDE_GBS_PER_SM, _BESIDE_BUS_SHARE = 24.6, 0.8
_ELEMENT_BYTES = 2


def shares_of_sms(plan: Plan, *, head_dim: int, num_sms: int, memory_gbs: float) -> tuple[int, int]:
    """Return `decode_only_sms` and `prefill_only_sms`; one of them is 0.

    Raises
    ------
    ValueError
        `memory_gbs` is not greater than 0.
    """
    if not memory_gbs > 0:
        raise ValueError(f"memory_gbs={memory_gbs}: must be greater than 0")
    decode_only = decode_only_sms(plan, head_dim=head_dim, num_sms=num_sms, memory_gbs=memory_gbs)
    if decode_only:
        return decode_only, 0
    return 0, prefill_only_sms(plan, head_dim=head_dim, num_sms=num_sms, memory_gbs=memory_gbs)


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


def prefill_only_sms(plan: Plan, *, head_dim: int, num_sms: int, memory_gbs: float) -> int:
    """Return how many SMs, those with the longest tiles, should take no decode before prefill ends.

    Parameters
    ----------
    plan, head_dim, num_sms, memory_gbs
        As of `decode_only_sms`.
    """
    unit_us = _prefill_unit_us(plan, head_dim) * _FUSED_SLOWDOWN
    decode_mb = _decode_bytes(plan, head_dim) / 1e6
    if decode_mb == 0 or not 0 < len(unit_us) <= num_sms:
        return 0
    bus_gbs = _BESIDE_BUS_SHARE * _READ_EFFICIENCY * memory_gbs
    mb_per_sm = min(_BESIDE_GBS_PER_SM, bus_gbs / num_sms) * unit_us[0] / 1e3
    most = min(int(num_sms - decode_mb / mb_per_sm), len(unit_us) - 1)
    if most <= 0:
        return 0
    numbers = np.arange(most + 1)
    longest_beside_us = unit_us[numbers] + _US_PER_DECODED_MB * decode_mb / (num_sms - numbers)
    return int(np.argmin(np.maximum(longest_beside_us, unit_us[0])))


def _prefill_unit_us(plan: Plan, head_dim: int) -> npt.NDArray[np.float64]:
    """Return the time of every prefill unit alone, longest first, as they are taken."""
    keys = np.repeat(keys_of(plan.prefill), plan.num_kv_heads).astype(np.float64)
    flops_per_key = 4.0 * head_dim * plan.prefill_rows
    return keys * (flops_per_key / _PREFILL_TFLOPS_PER_SM / 1e6)


def _waves_us(unit_us: npt.NDArray[np.float64], num_sms: int) -> float:
    """Return the time of units in waves on so many SMs: the longest of each wave."""
    return float(unit_us[::num_sms].sum())


def _decode_bytes(plan: Plan, head_dim: int) -> float:
    keys = float(keys_of(plan.decode).sum())
    return 2 * keys * plan.num_kv_heads * head_dim * _ELEMENT_BYTES
