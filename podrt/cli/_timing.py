"""Time launches on the GPU with CUDA events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from podrt.device import load_cupy

_WARM_UP = 5
_REPEATS = 30
#: Written before every launch: empties L2, and keeps the GPU busy while the host prepares.
_FLUSH_BYTES = 1 << 30
_FLUSH_SHARE = 16


def median_times_us(launches: Sequence[Callable[[], Any]]) -> list[float]:
    """Return the median time of each launch on the current CuPy stream, in microseconds.

    Launches take turns, so that a change of the GPU's clock meets all of them alike. Each starts
    with a cold L2 behind a long memory write, so that the host's own work is not in the time.
    """
    cupy = load_cupy()
    total_bytes = cupy.cuda.runtime.memGetInfo()[1]
    flush = cupy.cuda.alloc(min(_FLUSH_BYTES, total_bytes // _FLUSH_SHARE))
    samples: list[list[float]] = [[] for _ in launches]
    for repeat in range(_WARM_UP + _REPEATS):
        for launch, times_us in zip(launches, samples, strict=True):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            flush.memset_async(0, flush.mem.size)
            begin.record()
            launch()
            end.record()
            end.synchronize()
            if repeat >= _WARM_UP:
                times_us.append(1e3 * cupy.cuda.get_elapsed_time(begin, end))
    return [median(times_us) for times_us in samples]
