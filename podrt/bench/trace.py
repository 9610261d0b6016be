"""Timelines measured on the GPU: a batch run by instrumented builds of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from podrt.attention import HybridAttention
from podrt.bench.case import Case
from podrt.bench.planned import planned_attention
from podrt.bench.tensors import CaseTensors, free_memory, make_tensors
from podrt.bench.timing import median_times_us
from podrt.explore.record import TracedRun
from podrt.explore.spans import events_of, timeline_of
from podrt.explore.timeline import Timeline
from podrt.gpu.device import DeviceInfo, current_device, load_cupy
from podrt.jit import LoadedKernel
from podrt.kernels.families import full_grid
from podrt.kernels.tracing import BUFFER_DTYPE, TRACE_SYMBOL, empty_buffer, recorded
from podrt.policy.policies import parse_policy
from podrt.runtime.kernels import instrumented_kernels, load_kernel

#: Runs that are recorded, of which the one of median length is kept.
_RUNS = 5


def trace_case(case: Case, policy: str = "auto", *, room: int | None = None) -> TracedRun:
    """Run a batch of random tensors with instrumented builds on the current GPU.

    Both builds are timed before, so that the GPU's clocks have settled.

    Parameters
    ----------
    case : Case
        The batch and its layer.
    policy : str
        As of `podrt.HybridAttention`, or fields of `podrt.Policy`.
    room : int, optional
        Events that find room; as many as there can be if None.

    Raises
    ------
    DeviceError
        There is no GPU, or the case does not fit on it.
    PodrtError
        What was recorded is not a run of the batch.
    """
    gpu = current_device()
    free_memory()
    with load_cupy().cuda.Stream(non_blocking=True):
        tensors = make_tensors(case)
        plain = _planned(tensors, policy)
        with instrumented_kernels():
            instrumented = _planned(tensors, policy)
        timeline, times_us = _trace(tensors, plain, instrumented, gpu, room)
    names = tuple(variant.name for variant in instrumented.variants)
    return TracedRun(policy, names, timeline, *times_us)


def _trace(
    tensors: CaseTensors,
    plain: HybridAttention,
    instrumented: HybridAttention,
    gpu: DeviceInfo,
    room: int | None,
) -> tuple[Timeline, list[float]]:
    """Return the timeline, and the times of the plain and of the instrumented build."""
    plan, variants = instrumented.current_plan, instrumented.variants
    if room is None:
        room = events_of(plan, sum(full_grid(each, gpu.num_sms) for each in variants))
    run = partial(_run_instrumented, tensors, instrumented)
    with instrumented_kernels():
        kernels = [load_kernel(variant, gpu.ordinal) for variant in variants]
    buffers = []
    with recording(kernels, room) as (clear, read):
        times_us = median_times_us([partial(_run, tensors, plain), run])
        for _ in range(_RUNS):
            clear()
            run()
            buffers.append(read())
    found = [timeline_of(recorded(each), plan, gpu.name, gpu.num_sms) for each in buffers]
    return sorted(found, key=lambda each: each.end_us)[_RUNS // 2], times_us


@contextmanager
def recording(
    kernels: Sequence[LoadedKernel], room: int
) -> Iterator[tuple[Callable[[], None], Callable[[], Any]]]:
    """Have instrumented kernels record to one buffer, on CuPy's current stream.

    Parameters
    ----------
    kernels : sequence of LoadedKernel
        Loaded inside `instrumented_kernels`.
    room : int
        Events that find room.

    Yields
    ------
    clear, read : callables
        What empties the buffer, and what waits for the stream and returns its bytes for `recorded`.
    """
    cupy = load_cupy()
    buffer = cupy.asarray(empty_buffer(room))
    count = buffer[: BUFFER_DTYPE["count"].itemsize]  # the first of it
    stream = cupy.cuda.get_current_stream()
    _point(kernels, buffer.data.ptr)
    try:
        yield partial(count.fill, 0), buffer.get
    finally:
        stream.synchronize()
        _point(kernels, 0)


def _point(kernels: Sequence[LoadedKernel], address: int) -> None:
    """Set the global symbol of each kernel's module, once the GPU is done with all before."""
    runtime = load_cupy().cuda.runtime
    value = np.array([address], np.uint64)
    runtime.deviceSynchronize()
    for kernel in kernels:
        symbol = kernel.address_of(TRACE_SYMBOL)
        runtime.memcpy(symbol, value.ctypes.data, value.nbytes, runtime.memcpyHostToDevice)
    runtime.deviceSynchronize()


def _planned(tensors: CaseTensors, policy: str) -> HybridAttention:
    case, chosen = tensors.case, parse_policy(policy)
    kv_lens = np.array(case.kv_lens, np.int32)
    return planned_attention(case.spec(), chosen, case.qo_indptr, kv_lens, tensors.block_table)


def _run(tensors: CaseTensors, attention: HybridAttention) -> None:
    attention.run(tensors.q, tensors.k_cache, tensors.v_cache, out=tensors.out, sinks=tensors.sinks)


def _run_instrumented(tensors: CaseTensors, attention: HybridAttention) -> None:
    with instrumented_kernels():  # a run may prepare launches, as of a graph's first
        _run(tensors, attention)
