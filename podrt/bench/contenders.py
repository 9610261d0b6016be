"""podrt's own contenders for a case: its policies, two streams, and each side alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from podrt.bench.case import Case
from podrt.bench.planned import planned_attention
from podrt.bench.tensors import CaseTensors
from podrt.bench.timing import Enqueue
from podrt.gpu.device import load_cupy

AUTO, SERIAL, STREAMS = "auto", "serial", "streams"
PREFILL_ALONE, DECODE_ALONE = "prefill alone", "decode alone"
#: Ends the name of a kernel family's own serial policy: ``"portable-serial"``.
FAMILY_SERIAL = "-serial"


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
    return name not in (STREAMS, PREFILL_ALONE, DECODE_ALONE)


def names_for(case: Case) -> list[str]:
    """Return the names of a case's contenders; a case of one side needs no baselines of two."""
    sides = (SERIAL, STREAMS, PREFILL_ALONE, DECODE_ALONE) if case.is_hybrid else ()
    return list(dict.fromkeys((AUTO, *sides, *case.policies)))


def make_contender(name: str, tensors: CaseTensors) -> Contender:
    """Plan a contender; any name but those of this module is a policy of `HybridAttention`.

    Raises
    ------
    UnsupportedConfigError
        This version of podrt has no such policy.
    """
    prefills = len(tensors.case.prefill)
    prefill, decode = slice(0, prefills), slice(prefills, len(tensors.case.kv_lens))
    if name == STREAMS:
        return _two_streams(tensors, prefill, decode)
    sides = {PREFILL_ALONE: prefill, DECODE_ALONE: decode}
    if name in sides:
        return _attention(tensors, sides[name], AUTO)
    return _attention(tensors, slice(0, decode.stop), name)


def _attention(tensors: CaseTensors, requests: slice, policy: str) -> Contender:
    """One planned `HybridAttention` over some of the case's requests."""
    case = tensors.case
    starts = np.concatenate(([0], np.cumsum(case.q_lens))).astype(np.int32)
    qo_indptr = starts[requests.start : requests.stop + 1]
    rows = slice(int(qo_indptr[0]), int(qo_indptr[-1]))
    caches: tuple[Any, ...] = (tensors.k_cache, tensors.v_cache)
    block_table = tensors.block_table
    if block_table is None:
        caches = tuple(cache[requests] for cache in caches)
    else:
        block_table = block_table[requests]
    kv_lens = np.array(case.kv_lens[requests], np.int32)
    attention = planned_attention(
        case.spec(), policy, qo_indptr - qo_indptr[0], kv_lens, block_table
    )

    def enqueue() -> None:
        attention.run(tensors.q[rows], *caches, out=tensors.out[rows])

    names = ", ".join(config.name for config in attention.variants)
    choice = attention.explain().choice
    return Contender(names, enqueue, requests, choice.predicted_us if choice else None)


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
