"""The committed measurements of whole launches, with the schedules that they were taken of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from podrt.bench.case import Case
from podrt.bench.results import load
from podrt.gpu import nominal
from podrt.gpu.device import DeviceInfo
from podrt.policy import calibration
from podrt.policy.policies import Policy
from podrt.policy.schedule import Schedule, schedule
from podrt.policy.sm_allocation import SmAllocation
from podrt.spec.batch import HybridBatch

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"
GPUS = {"h100": nominal.H100, "h200": nominal.H200}
SUITES = {
    "h100": ("peers-bf5012b", "solo-bf5012b"),
    "h200": ("peers", "balanced", "solo", "traces"),
}
HELD_OUT = ("peers", "balanced", "solo")
#: The allocation by which all batches of `measurements` ran.
ALLOCATION_THEN = replace(
    calibration.H200.sm_sharing,
    time_ratios=(0.2, 0.36, 0.6, 0.75),
    best_shares=(0.0, 0.25, 0.13, 0.0),
)


class Measurement(NamedTuple):
    """One contender of one batch, whose schedule it was, and its median time."""

    case: str
    contender: str
    schedule: Schedule
    time_us: float


@cache
def measurements(gpu: str) -> tuple[Measurement, ...]:
    """Return all rows of the Hopper family's launches that are committed of a GPU."""
    found = [row for suite in SUITES[gpu] for row in _rows_of(gpu, suite)]
    return (*found, *allocations()) if gpu == "h100" else tuple(found)


@cache
def allocations() -> tuple[Measurement, ...]:
    """Return the rows of `prefill-order.json`: batches with several allocations and orders."""
    rows = json.loads((RESULTS / "h100" / "prefill-order.json").read_text())["rows"]
    return tuple(
        Measurement(name, contender, _of_order(_case(name), contender), entry["us"])
        for name, contenders in rows.items()
        for contender, entry in contenders.items()
    )


@cache
def held_out() -> tuple[Measurement, ...]:
    """Return what was measured on an H100 after the fit, with the schedules of today."""
    return tuple(row for suite in HELD_OUT for row in _rows_since(suite))


def _rows_since(suite: str) -> Iterator[Measurement]:
    """Yield what ran on the Hopper family since its prefill goes by head."""
    for row in load(RESULTS / "h100" / f"{suite}.json").rows:
        case, time_us, contender = row.to_case(), row.time_us, row.policy
        if case.head_dim == 256 or time_us is None:
            continue
        policy = Policy(serial=contender == "serial")
        if contender in ("prefill alone", "decode alone"):
            case = replace(case, **{"decode" if contender[0] == "p" else "prefill": ()})
        elif "-only=" in contender:
            policy = _with_sms(Policy(family="hopper"), contender)
        elif contender not in ("auto", "serial"):
            continue
        found = scheduled(case, nominal.H100, policy)
        yield Measurement(row.case, contender, found, time_us)


def _rows_of(gpu: str, suite: str) -> Iterator[Measurement]:
    """Yield what ran on the Hopper family, whose prefill went by length then."""
    for row in load(RESULTS / gpu / f"{suite}.json").rows:
        case, time_us = row.to_case(), row.time_us
        if case.head_dim == 256 or time_us is None:
            continue
        if row.policy in ("auto", "serial"):
            serial = row.policy == "serial"
            yield Measurement(row.case, row.policy, _by_length(case, gpu, serial), time_us)
        elif row.policy in ("prefill alone", "decode alone"):
            side = replace(case, **{"decode" if row.policy == "prefill alone" else "prefill": ()})
            yield Measurement(row.case, row.policy, _by_length(side, gpu, False), time_us)


def _case(name: str) -> Case:
    """Return the case of a name such as ``32/8, 2048 @ 16384 + 64 x 16384``."""
    qo, kv, q_len, kv_len, decodes, keys = map(int, re.findall(r"\d+", name))
    return Case(name, qo, kv, 128, "bfloat16", 16, ((q_len, kv_len),), (keys,) * decodes)


def _of_order(case: Case, contender: str) -> Schedule:
    allocation, order = contender.split(", ")
    if order == "old" and allocation == "auto":
        return _by_length(case, "h100", False)
    policy = Policy(prefill_order="length" if order == "old" else None)
    if allocation == "auto":
        return _allocated(case, nominal.H100, policy)
    return scheduled(case, nominal.H100, _with_sms(replace(policy, family="hopper"), allocation))


def _with_sms(policy: Policy, allocation: str) -> Policy:
    """Return the policy with an allocation such as ``decode-only=4``."""
    side, sms = allocation.split("=")
    return replace(policy, **{f"{side.replace('-', '_')}_sms": int(sms)})


def _by_length(case: Case, gpu: str, serial: bool) -> Schedule:
    device = GPUS[gpu]
    if serial:
        return scheduled(case, device, Policy(serial=True, prefill_order="length"))
    return _allocated(case, device, Policy(prefill_order="length"))


def _allocated(case: Case, device: DeviceInfo, policy: Policy) -> Schedule:
    """Return the schedule with the allocation of then, fitted to an H200, as all rows had it."""
    found = scheduled(case, device, policy)
    if len(found.variants) != 1 or not case.is_hybrid:
        return found
    sms = SmAllocation(device.num_sms, device.memory_gbs, ALLOCATION_THEN)
    decode_only, prefill_only = sms.shares(found.plan)
    plan = found.plan._replace(decode_only_ctas=decode_only, prefill_only_ctas=prefill_only)
    return found._replace(plan=plan)


def scheduled(case: Case, device: DeviceInfo, policy: Policy) -> Schedule:
    """Schedule a case with pages one after the other."""
    qo_indptr = np.cumsum((0, *case.q_lens)).astype(np.int32)
    kv_lens = np.array(case.kv_lens, np.int32)
    if case.page_size is None:
        batch = HybridBatch.contiguous(qo_indptr, kv_lens)
    else:
        pages = -(-int(kv_lens.max()) // case.page_size)
        batch = HybridBatch.from_block_table(
            qo_indptr,
            kv_lens,
            shape=(len(kv_lens), pages),
            row_stride=pages,
            page_size=case.page_size,
        )
    return schedule(batch, case.spec(), device, policy)
