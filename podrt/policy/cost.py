"""What the Hopper family's launches take, predicted from a GPU's `LaunchCosts`.

Prefill is its units in turn on the SMs that take them, each as long as its keys. Decode is its keys
and values over what the SMs read together, or what the bus moves beside prefill. What an SM decodes
holds up the prefill on it. The bus moves all bytes, those that prefill reads again included.

`design/cost-model.md` says how it was fitted and how far off it is. No policy heeds it so far.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.gpu.device import DeviceInfo
from podrt.kernels.hopper.config import HopperConfig
from podrt.plan import Plan, WorkList, keys_of
from podrt.policy.constants import Calibration, LaunchCosts, weights_of
from podrt.policy.traffic import KeysRead, keys_read, units_in_turn
from podrt.spec.types import ELEMENT_BYTES

Limit = Literal["prefill", "decode", "bus"]
#: A decode is said to wait for the bus if moving all bytes takes this share of its time.
_BUS_BOUND = 0.95
#: Decode leaves prefill at least this share of its pace.
_SLOWEST = 0.1
#: Prefill that gathers rows takes so many times as long: one warp brings a tile, 16 bytes a lane
#: (`bench/results/h100/features-pages.json`).
_GATHERED = 2.0
#: Keys of a tile of prefill alone, but for the larger ones.
_STANDARD_TILE = 128

Times = npt.NDArray[np.floating[Any]]


class Prediction(NamedTuple):
    """What is predicted of one launch.

    Attributes
    ----------
    time_us : float
        From start to end.
    limit : {"prefill", "decode", "bus"}
        What it waits for: SMs with prefill, SMs with decode, or memory.
    """

    time_us: float
    limit: Limit


class Work(NamedTuple):
    """What a launch has to do.

    Attributes
    ----------
    units_us : float array
        Units of prefill in turn, undisturbed.
    prefill_mb, decode_mb : float
        Megabytes that each side reads from memory.
    decode_only, prefill_only : int
        SMs that take one side first.
    merge_us : float
        What merging split tiles adds.
    """

    units_us: Times
    prefill_mb: float
    decode_mb: float
    decode_only: int
    prefill_only: int
    merge_us: float


def predict(
    plan: Plan, variants: Sequence[HopperConfig], gpu: DeviceInfo, calibration: Calibration
) -> tuple[Prediction, ...]:
    """Predict the launches of a plan, one for each of its variants."""
    works = [work_of(plan, variant, gpu, calibration) for variant in variants]
    return tuple(
        predict_work(work, variant, gpu, calibration)
        for work, variant in zip(works, variants, strict=True)
    )


def work_of(plan: Plan, variant: HopperConfig, gpu: DeviceInfo, calibration: Calibration) -> Work:
    """Return what the launch of one variant has to do of a plan."""
    return costed(load_of(plan, variant, gpu, calibration), variant, gpu, calibration.launch_costs)


class Load(NamedTuple):
    """What a launch has to do of a plan, whatever its `LaunchCosts`: a fit counts it once.

    Attributes
    ----------
    unit_keys : int array
        Keys of the units of prefill in turn.
    unit_rows : int
        Their packed query rows.
    read : KeysRead
        What prefill reads.
    decode_keys : int
        What decode reads, over all heads.
    decode_only, prefill_only : int
        SMs that take one side first.
    splits_prefill, splits_decode : bool
        Whether there is anything to merge.
    """

    unit_keys: npt.NDArray[np.int64]
    unit_rows: int
    read: KeysRead
    decode_keys: int
    decode_only: int
    prefill_only: int
    splits_prefill: bool
    splits_decode: bool


def load_of(plan: Plan, variant: HopperConfig, gpu: DeviceInfo, calibration: Calibration) -> Load:
    """Return the load of one variant's launch; heeds no `LaunchCosts`."""
    is_pod = variant.form == "pod"
    decode_only = min(plan.decode_only_ctas, gpu.num_sms) if is_pod else 0
    prefill_only = min(plan.prefill_only_ctas, gpu.num_sms - decode_only) if is_pod else 0
    unit_keys, read = np.empty(0, np.int64), KeysRead(0, 0)
    if variant.has_prefill:
        unit_keys = keys_of(plan.prefill)[units_in_turn(plan)[0]]
        resident_bytes = calibration.l2_use.resident_share * gpu.l2_bytes
        read = keys_read(plan, gpu.num_sms, int(resident_bytes / _key_mb(variant) / 1e6))
    return Load(
        unit_keys,
        plan.prefill_rows,
        read,
        plan.decode_keys * plan.num_kv_heads if variant.has_decode else 0,
        decode_only,
        prefill_only,
        variant.has_prefill and _has_splits(plan.prefill),
        variant.has_decode and _has_splits(plan.decode),
    )


def costed(load: Load, variant: HopperConfig, gpu: DeviceInfo, costs: LaunchCosts) -> Work:
    """Return what a load amounts to on a GPU of those costs."""
    key_mb = _key_mb(variant)
    units_us: Times = np.empty(0)
    prefill_mb = merge_us = 0.0
    if variant.has_prefill:
        us_per_key = 2e-6 * _elements(variant) * load.unit_rows / _tflops_per_sm(costs, variant)
        units_us = costs.unit_us + us_per_key * load.unit_keys
        drift = 1 + costs.drift * load.decode_only / gpu.num_sms  # tiles fall out of step
        prefill_mb = key_mb * (load.read.unique + drift * load.read.repeated)
        prefill_mb += key_mb * load.unit_rows * len(units_us)  # queries, and the output
        merge_us = costs.prefill_merge_us * load.splits_prefill
    decode_mb = key_mb * load.decode_keys
    merge_us = max(merge_us, costs.decode_merge_us * load.splits_decode)
    return Work(units_us, prefill_mb, decode_mb, load.decode_only, load.prefill_only, merge_us)


def _key_mb(variant: HopperConfig) -> float:
    """Return the megabytes of a key and its value, or of a query and its output."""
    return _elements(variant) * ELEMENT_BYTES[variant.dtype] / 1e6


def _elements(variant: HopperConfig) -> int:
    return variant.head_dim + variant.value_dim


def predict_work(
    work: Work, variant: HopperConfig, gpu: DeviceInfo, calibration: Calibration
) -> Prediction:
    """Predict one launch: decode beside prefill first, then what is left of either."""
    costs, num_sms = calibration.launch_costs, gpu.num_sms
    beside = beside_each_other(work, variant, gpu, calibration)
    prefill_us = prefill_end_us(work, num_sms, beside)
    decode_us = decode_end_us(work, num_sms, beside, prefill_us, calibration)
    bus_us = (work.prefill_mb + work.decode_mb) / beside.bus
    ends: dict[Limit, float] = {"prefill": prefill_us, "decode": decode_us, "bus": bus_us}
    limit = max(ends, key=lambda name: ends[name])
    if limit == "decode" and bus_us > _BUS_BOUND * decode_us:
        limit = "bus"
    return Prediction(costs.launch_us + work.merge_us + ends[limit], limit)


class Beside(NamedTuple):
    """How the sides of a launch get on while both have work.

    Attributes
    ----------
    bus, rate : float
        Megabytes a microsecond that memory moves at most, and that decode reads.
    held_up : float
        Share of their time that units of prefill lose.
    decode_us : float
        When decode would end at that rate; infinite where it has none.
    """

    bus: float
    rate: float
    held_up: float
    decode_us: float


def beside_each_other(
    work: Work, variant: HopperConfig, gpu: DeviceInfo, calibration: Calibration
) -> Beside:
    """Return how the sides of one launch get on."""
    costs = calibration.launch_costs
    bus = (
        _of_head_dim(costs.read_gbs, variant.head_dim) / 1e3
    )  # MB a microsecond, as all rates here
    if variant.form == "pod":
        bus *= costs.fused_read_share
    rate, held_up = _decode_beside(work, bus, gpu.num_sms, calibration)
    decode_us = 0.0
    if work.decode_mb:
        decode_us = work.decode_mb / rate if rate else math.inf
    return Beside(bus, rate, held_up, decode_us)


def decode_end_us(
    work: Work, num_sms: int, beside: Beside, prefill_us: float, calibration: Calibration
) -> float:
    """Return when decode ends, given when prefill does: all SMs read from then on."""
    if prefill_us >= beside.decode_us:
        return beside.decode_us
    faster = min(num_sms * calibration.sm_sharing.decode_gbs_per_sm / 1e3, beside.bus)
    return prefill_us + (work.decode_mb - beside.rate * prefill_us) / faster


def _decode_beside(
    work: Work, bus: float, num_sms: int, calibration: Calibration
) -> tuple[float, float]:
    """Return MB a microsecond decoded while there is prefill, and what share of it that costs."""
    if not work.decode_mb:
        return 0.0, 0.0
    alone = calibration.sm_sharing.decode_gbs_per_sm / 1e3
    beside = calibration.sm_sharing.beside_gbs_per_sm / 1e3
    busy = min(len(work.units_us), num_sms - work.decode_only)  # SMs with prefill
    both = max(busy - work.prefill_only, 0)
    wanted = (num_sms - busy) * alone + both * beside
    rate = min(wanted, bus * work.decode_mb / (work.prefill_mb + work.decode_mb))
    used = rate / wanted if wanted else 0.0
    return rate, calibration.launch_costs.us_per_decoded_mb * beside * used


def _has_splits(items: WorkList) -> bool:
    return bool((items["num_splits"] > 1).any())


def _tflops_per_sm(costs: LaunchCosts, variant: HopperConfig) -> float:
    """Return what one SM reaches in the prefill of a variant, undisturbed."""
    tflops = _of_head_dim(costs.prefill_tflops_per_sm, variant.head_dim)
    if variant.gathers_rows:
        tflops /= _GATHERED
    if variant.form == "pod":
        return tflops / costs.fused_factor
    is_large = variant.kv_tile > _STANDARD_TILE
    return tflops / costs.large_tile_factor if is_large else tflops


def _of_head_dim(pair: tuple[float, float], head_dim: int) -> float:
    """Return the constant of a head_dim: between those of 64 and 128 by its share of each."""
    weights = weights_of(head_dim)
    return pair[0] * weights[0] + pair[1] * weights[1]


class PlacedUnit(NamedTuple):
    """A unit of prefill on an SM, in microseconds from the launch's beginning."""

    sm: int
    begin_us: float
    end_us: float


def prefill_end_us(work: Work, num_sms: int, beside: Beside) -> float:
    """Return when the last unit of prefill ends."""
    return max(_in_turn(work, num_sms, beside)[1], default=0.0)


def placed_units(work: Work, num_sms: int, beside: Beside) -> Iterator[PlacedUnit]:
    """Yield the units of prefill as SMs take them in turn.

    SMs are in this order: those that take prefill first, undisturbed; those that take both; those
    that take decode first, and units once it has ended.
    """
    for (begin_us, sm, _), end_us in zip(*_in_turn(work, num_sms, beside), strict=True):
        yield PlacedUnit(sm, begin_us, end_us)


def _in_turn(
    work: Work, num_sms: int, beside: Beside
) -> tuple[list[tuple[float, int, float]], list[float]]:
    """Return where units of prefill begin, on which SM at which pace, and when they end.

    A fit goes through millions of units: hence tuples, and comparisons rather than `max`.
    """
    decode_us, slow = beside.decode_us, max(1.0 - beside.held_up, _SLOWEST)
    paces = [1.0] * work.prefill_only
    paces += [slow] * (num_sms - work.decode_only - work.prefill_only)
    free = [(0.0, sm, pace) for sm, pace in enumerate(paces)]
    free += [(decode_us, sm, 1.0) for sm in range(len(free), num_sms)]
    taken, ends_us = [], []
    for unit_us in work.units_us.tolist():
        place = begin_us, sm, pace = free[0]
        if begin_us >= decode_us:
            end_us = begin_us + unit_us
        else:
            done = (decode_us - begin_us) * pace  # of the unit, before decode ends
            end_us = begin_us + unit_us / pace if unit_us <= done else decode_us + unit_us - done
        heapq.heapreplace(free, (end_us, sm, pace))
        taken.append(place)
        ends_us.append(end_us)
    return taken, ends_us
