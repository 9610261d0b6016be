"""Timelines measured on the GPU: a batch run by instrumented builds of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from podrt.attention import HybridAttention
from podrt.bench.case import Case
from podrt.bench.planned import planned_attention
from podrt.bench.tensors import CaseTensors, free_memory, make_tensors
from podrt.bench.timing import median_times_us
from podrt.explore.spans import events_of, timeline_of
from podrt.explore.timeline import Timeline
from podrt.gpu.device import DeviceInfo, current_device, load_cupy
from podrt.jit import LoadedKernel
from podrt.kernels.families import full_grid
from podrt.kernels.tracing import TRACE_SYMBOL, empty_buffer, recorded
from podrt.policy.policies import Policy
from podrt.runtime.kernels import instrumented_kernels, load_kernel


@dataclass(frozen=True)
class Traced:
    """A measured timeline, and what recording it costs.

    Attributes
    ----------
    timeline : Timeline
        Of one run of the instrumented build.
    plain_us, traced_us : float
        Median times of the plain and of the instrumented build, which took turns.
    """

    timeline: Timeline
    plain_us: float
    traced_us: float

    @property
    def overhead(self) -> float:
        """What the instrumented build takes more, as a share of the plain one's time."""
        return self.traced_us / self.plain_us - 1


def trace_case(case: Case, policy: str | Policy = "auto", *, room: int | None = None) -> Traced:
    """Run a batch of random tensors with instrumented builds on the current GPU.

    Both builds are timed before, so that the GPU's clocks have settled.

    Parameters
    ----------
    case : Case
        The batch and its layer.
    policy : str or Policy
        As of `podrt.HybridAttention`.
    room : int, optional
        Events that find room at least; as many as there can be if None.

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
        return _trace(tensors, plain, instrumented, gpu, room)


def _trace(
    tensors: CaseTensors,
    plain: HybridAttention,
    instrumented: HybridAttention,
    gpu: DeviceInfo,
    room: int | None,
) -> Traced:
    plan, variants = instrumented.current_plan, instrumented.variants
    if room is None:
        room = events_of(plan, sum(full_grid(each, gpu.num_sms) for each in variants))
    run = partial(_run_instrumented, tensors, instrumented)
    with instrumented_kernels():
        kernels = [load_kernel(variant, gpu.ordinal) for variant in variants]
    with recording(kernels, room) as (clear, read):
        plain_us, traced_us = median_times_us([partial(_run, tensors, plain), run])
        clear()
        run()
        timeline = timeline_of(recorded(read()), plan, gpu.name, gpu.num_sms)
    return Traced(timeline, plain_us, traced_us)


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
        Events that find room at least.

    Yields
    ------
    clear, read : callables
        What empties the buffer, and what waits for the stream and returns its bytes for `recorded`.
    """
    cupy = load_cupy()
    empty = empty_buffer(room)
    buffer = cupy.asarray(empty)
    stream = cupy.cuda.get_current_stream()
    _point(kernels, buffer.data.ptr)
    try:
        yield partial(buffer.set, empty), buffer.get
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


def _planned(tensors: CaseTensors, policy: str | Policy) -> HybridAttention:
    case = tensors.case
    qo_indptr = np.concatenate(([0], np.cumsum(case.q_lens))).astype(np.int32)
    kv_lens = np.array(case.kv_lens, np.int32)
    return planned_attention(case.spec(), policy, qo_indptr, kv_lens, tensors.block_table)


def _run(tensors: CaseTensors, attention: HybridAttention) -> None:
    attention.run(tensors.q, tensors.k_cache, tensors.v_cache, out=tensors.out, sinks=tensors.sinks)


def _run_instrumented(tensors: CaseTensors, attention: HybridAttention) -> None:
    with instrumented_kernels():  # a run may prepare launches, as of a graph's first
        _run(tensors, attention)
