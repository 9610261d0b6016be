"""podrt's own contenders for a case: its policies, two streams, parts of the SMs, a side alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from podrt.attention import HybridAttention
from podrt.bench.case import Case
from podrt.bench.green_contexts import partition
from podrt.bench.planned import planned_attention
from podrt.bench.tensors import CaseTensors
from podrt.bench.timing import Enqueue
from podrt.gpu.device import load_cupy
from podrt.policy.policies import Policy

AUTO, SERIAL, STREAMS = "auto", "serial", "streams"
PREFILL_ALONE, DECODE_ALONE = "prefill alone", "decode alone"
#: Ends the name of a kernel family's own serial policy: ``"portable-serial"``.
FAMILY_SERIAL = "-serial"
#: Begins the names of both sides on SMs of their own: ``"green-contexts=64"`` has 64 for prefill.
GREEN_CONTEXTS = "green-contexts"
#: SMs for prefill of which a case that names `GREEN_CONTEXTS` gets a contender each.
GREEN_SMS = (64, 72, 80, 88, 96, 104, 112)


@dataclass(frozen=True, eq=False)
class Contender:
    """Something that computes a case, or one side of it, into the case's `out`.

    Attributes
    ----------
    variant : str
        Names of the kernels it launches.
    enqueue : callable
        Launches them on CuPy's current stream.
    requests : slice
        The requests it serves.
    predicted_us : float or None
        What the cost model says that its launches take; None where it knows nothing of them.
    """

    variant: str
    enqueue: Enqueue
    requests: slice
    predicted_us: float | None = None


def is_candidate(name: str) -> bool:
    """Whether a contender is a way to run a whole batch that podrt's own choice might have been."""
    return name not in (STREAMS, PREFILL_ALONE, DECODE_ALONE) and not is_green(name)


def is_green(name: str) -> bool:
    """Whether a contender has each side on a part of the SMs."""
    return name.partition("=")[0] == GREEN_CONTEXTS


def names_for(case: Case) -> list[str]:
    """Return the names of a case's contenders; a case of one side needs no baselines of two."""
    sides = (SERIAL, STREAMS, PREFILL_ALONE, DECODE_ALONE) if case.is_hybrid else ()
    green = [f"{GREEN_CONTEXTS}={sms}" for sms in GREEN_SMS] if case.is_hybrid else []
    names = [AUTO, *sides]
    for policy in case.policies:
        names += green if policy == GREEN_CONTEXTS else [policy]
    return list(dict.fromkeys(names))


def make_contender(name: str, tensors: CaseTensors) -> Contender:
    """Plan a contender; any name but those of this module is a policy of `HybridAttention`.

    Raises
    ------
    UnsupportedConfigError
        This version of podrt has no such policy.
    DeviceError
        The driver cannot give a part of the SMs.
    """
    prefills = len(tensors.case.prefill)
    prefill, decode = slice(0, prefills), slice(prefills, len(tensors.case.kv_lens))
    if name == STREAMS:
        return _two_streams(tensors, prefill, decode)
    if is_green(name):
        return _two_partitions(tensors, prefill, decode, int(name.partition("=")[2]))
    sides = {PREFILL_ALONE: prefill, DECODE_ALONE: decode}
    if name in sides:
        return _attention(tensors, sides[name], AUTO)
    return _attention(tensors, slice(0, decode.stop), name)


def _attention(
    tensors: CaseTensors, requests: slice, policy: str, *, num_sms: int | None = None
) -> Contender:
    """One planned `HybridAttention` over some of the case's requests."""
    attention, enqueue = launch_of(tensors, requests, policy, num_sms=num_sms)
    names = ", ".join(config.name for config in attention.variants)
    choice = attention.explain().choice
    return Contender(names, enqueue, requests, choice.predicted_us if choice else None)


def launch_of(
    tensors: CaseTensors, requests: slice, policy: str | Policy, *, num_sms: int | None = None
) -> tuple[HybridAttention, Enqueue]:
    """Plan some of a case's requests; return what runs them, and what enqueues that."""
    case = tensors.case
    qo_indptr = case.qo_indptr[requests.start : requests.stop + 1]
    rows = slice(int(qo_indptr[0]), int(qo_indptr[-1]))
    caches: tuple[Any, ...] = (tensors.k_cache, tensors.v_cache)
    block_table = tensors.block_table
    if block_table is None:
        caches = tuple(cache[requests] for cache in caches)
    else:
        block_table = block_table[requests]
    kv_lens = np.array(case.kv_lens[requests], np.int32)
    attention = planned_attention(
        case.spec(), policy, qo_indptr - qo_indptr[0], kv_lens, block_table, num_sms=num_sms
    )

    def enqueue() -> None:
        attention.run(tensors.q[rows], *caches, out=tensors.out[rows], sinks=tensors.sinks)

    return attention, enqueue


def _two_streams(tensors: CaseTensors, prefill: slice, decode: slice) -> Contender:
    """Each side alone on a stream of its own; the caller's stream waits for both."""
    cuda = load_cupy().cuda
    first, second = (_attention(tensors, side, AUTO) for side in (prefill, decode))
    side_stream = cuda.Stream(non_blocking=True)
    enqueue = fork_and_join(
        side_stream, cuda.Event(disable_timing=True), cuda.Event(disable_timing=True)
    )
    return Contender(
        f"{first.variant}, {second.variant}",
        lambda: enqueue(first.enqueue, second.enqueue),
        slice(prefill.start, decode.stop),
    )


def _two_partitions(
    tensors: CaseTensors, prefill: slice, decode: slice, prefill_sms: int
) -> Contender:
    """Each side on SMs of its own; the caller's stream, which has all of them, waits for both."""
    parts = partition(load_cupy().cuda.runtime.getDevice(), prefill_sms)
    sides = [
        _attention(tensors, side, AUTO, num_sms=part.num_sms)
        for side, part in zip((prefill, decode), parts, strict=True)
    ]
    event = partial(load_cupy().cuda.Event, disable_timing=True)
    beside_prefill, beside_decode = (fork_and_join(part.stream, event(), event()) for part in parts)

    def enqueue() -> None:
        beside_decode(lambda: beside_prefill(_nothing, sides[0].enqueue), sides[1].enqueue)

    return Contender(
        ", ".join(side.variant for side in sides), enqueue, slice(prefill.start, decode.stop)
    )


def _nothing() -> None:
    pass


def fork_and_join(side: Any, forked: Any, joined: Any) -> Callable[[Enqueue, Enqueue], None]:
    """Return what enqueues one thing on CuPy's current stream and another on the stream `side`.

    The side stream starts after what the current one holds, and the current stream waits for it.
    """
    get_current_stream = load_cupy().cuda.get_current_stream

    def enqueue(on_current: Enqueue, on_side: Enqueue) -> None:
        current = get_current_stream()
        current.record(forked)
        side.wait_event(forked)
        with side:
            on_side()
            side.record(joined)
        on_current()
        current.wait_event(joined)

    return enqueue
