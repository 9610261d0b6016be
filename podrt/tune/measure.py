"""Times of a case's policies on the GPU; the one part of `podrt.tune` that needs one."""

from __future__ import annotations

from collections.abc import Callable

from podrt.bench.case import Case
from podrt.bench.contenders import make_contender
from podrt.bench.tensors import free_memory, make_tensors
from podrt.bench.timing import Work, capture_graph, time_all
from podrt.gpu.device import load_cupy

#: From a case to the median time of each of its policies, in microseconds.
Measure = Callable[[Case], dict[str, float]]

_SAMPLES = 15
_WARM_UP_S = 0.15


def measure_policies(case: Case) -> dict[str, float]:
    """Return the median time of each of a case's policies, in turns, with a cold L2 cache.

    Raises
    ------
    DeviceError
        The case does not fit on the GPU.
    """
    free_memory()
    with load_cupy().cuda.Stream(non_blocking=True):
        tensors = make_tensors(case)
        contenders = [make_contender(name, tensors) for name in case.policies]
        works = [Work(each.enqueue, capture_graph) for each in contenders]
        timings = time_all(works, samples=_SAMPLES, warm_up_s=_WARM_UP_S)
    times_us = {}
    for name, timing in zip(case.policies, timings, strict=True):
        if isinstance(timing, Exception):
            raise timing
        times_us[name] = timing.median_us
    return times_us
