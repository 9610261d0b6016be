"""Time work on the GPU: the one place of podrt that does.

Every kind of work is captured into a CUDA graph if it can be, so that neither Python nor the
driver's launch path is in the time. All kinds take turns, so that a change of the GPU's clock meets
them alike, in an order drawn anew for each round: what ran before decides how warm the GPU is. Each
sample starts with a cold L2 cache, behind a long write and read of other memory during which the
host prepares the launch. Real samples are kept, and a kind of work that fails has an error and no
time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from podrt.bench.clocks import sm_clock_reader
from podrt.gpu.device import load_cupy

Enqueue = Callable[[], object]

SAMPLES = 25
WARM_UP_S = 0.3
#: Times within this share of each other are a tie.
TIE = 0.01

_MIN_WARM_UP_ROUNDS = 2
_FLUSH_BYTES = 1 << 30
_FLUSH_SHARE = 16


@dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes
    ----------
    enqueue : callable
        Enqueues the work on CuPy's current stream, and does not wait for it.
    capture : callable, optional
        Captures such a callable on that stream and returns what replays it; None times `enqueue`
        itself, the host's share included where the GPU is faster than the host.
    """

    enqueue: Enqueue
    capture: Callable[[Enqueue], Enqueue] | None = None


@dataclass(frozen=True)
class Timing:
    """Samples of one kind of work.

    Attributes
    ----------
    samples_us : tuple of float
        In the order they were taken.
    method : str
        ``"graph"`` or ``"events"``.
    sm_clock_mhz : int or None
        Median clock of the SMs while it ran; None where the driver does not tell.
    """

    samples_us: tuple[float, ...]
    method: str
    sm_clock_mhz: int | None

    @property
    def median_us(self) -> float:
        """The time to report."""
        return float(median(self.samples_us))

    @property
    def quartiles_us(self) -> tuple[float, float]:
        """First and third quartile."""
        first, third = np.percentile(self.samples_us, (25, 75))
        return float(first), float(third)


def capture_graph(enqueue: Enqueue) -> Enqueue:
    """Capture work on CuPy's current stream, which must not be the legacy default one."""
    stream = load_cupy().cuda.get_current_stream()
    stream.begin_capture()
    try:
        enqueue()
    finally:
        graph = stream.end_capture()
    return partial(graph.launch, stream)


def time_all(
    works: Sequence[Work], *, samples: int = SAMPLES, warm_up_s: float = WARM_UP_S
) -> list[Timing | Exception]:
    """Time several kinds of work against each other on CuPy's current stream.

    Parameters
    ----------
    works : sequence of Work
        They take turns, one sample of each per round, in random order.
    samples : int
        Rounds.
    warm_up_s : float
        Seconds of rounds before the first sample, so that clocks have settled.

    Returns
    -------
    list of Timing or Exception
        In the order of `works`; the exception that stopped one, whatever it was.
    """
    results: list[Timing | Exception] = [RuntimeError("not run")] * len(works)
    ready: dict[int, tuple[Enqueue, str]] = {}
    for number, work in enumerate(works):
        try:
            ready[number] = _prepared(work)
        except Exception as error:  # other people's code: anything, and it must not stop the rest
            results[number] = error
    cold_cache = _ColdCache()
    _warm_up([launch for launch, _ in ready.values()], warm_up_s)
    read_clock_mhz = sm_clock_reader()
    times_us: dict[int, list[float]] = {number: [] for number in ready}
    clocks_mhz: dict[int, list[int]] = {number: [] for number in ready}
    order, shuffle = list(ready), random.Random(0).shuffle
    for _ in range(samples):
        shuffle(order)
        for number in order:
            sample_us, clock_mhz = _sample(ready[number][0], cold_cache, read_clock_mhz)
            times_us[number].append(sample_us)
            clocks_mhz[number] += [] if clock_mhz is None else [clock_mhz]
    for number, (_launch, method) in ready.items():
        clocks = clocks_mhz[number]
        clock = round(median(clocks)) if clocks else None
        results[number] = Timing(tuple(times_us[number]), method, clock)
    return results


def median_times_us(launches: Sequence[Enqueue]) -> list[float]:
    """Return the median time of each launch on CuPy's current stream; raises what stopped one."""
    medians = []
    for timing in time_all([Work(launch, capture_graph) for launch in launches]):
        if isinstance(timing, Exception):
            raise timing
        medians.append(timing.median_us)
    return medians


def best_and_ties(times_us: Mapping[str, float]) -> list[str]:
    """Return the name of the smallest time, then those within `TIE` of it, fastest first."""
    names = sorted(times_us, key=lambda name: times_us[name])
    return [name for name in names if times_us[name] <= times_us[names[0]] * (1 + TIE)]


def _prepared(work: Work) -> tuple[Enqueue, str]:
    """Run work once, then capture it if that is possible."""
    work.enqueue()
    _synchronize()
    if work.capture is not None:
        try:
            replay = work.capture(work.enqueue)
            replay()
            _synchronize()
            return replay, "graph"
        except Exception:  # it may still run without a graph; if not, the next lines say why
            work.enqueue()
            _synchronize()
    return work.enqueue, "events"


def _warm_up(launches: Sequence[Enqueue], duration_s: float) -> None:
    begin_s = time.perf_counter()
    rounds = 0
    while launches and (rounds < _MIN_WARM_UP_ROUNDS or time.perf_counter() - begin_s < duration_s):
        for launch in launches:
            launch()
        _synchronize()
        rounds += 1


def _sample(
    launch: Enqueue, cold_cache: Enqueue, read_clock_mhz: Callable[[], int | None]
) -> tuple[float, int | None]:
    cuda = load_cupy().cuda
    begin, end = cuda.Event(), cuda.Event()
    cold_cache()
    begin.record()
    launch()
    end.record()
    clock_mhz = read_clock_mhz()  # while it runs
    end.synchronize()
    return 1e3 * cuda.get_elapsed_time(begin, end), clock_mhz


def _synchronize() -> None:
    load_cupy().cuda.get_current_stream().synchronize()


class _ColdCache:
    """Fills the L2 cache with memory that no work uses.

    It is written, then read back: writing alone would leave the cache full of lines whose way to
    memory would be in the next sample's time.
    """

    def __init__(self) -> None:
        cupy = load_cupy()
        total_bytes = cupy.cuda.runtime.memGetInfo()[1]
        size = min(_FLUSH_BYTES, total_bytes // _FLUSH_SHARE) // 4
        self._buffer: Any = cupy.empty(size, "int32")
        self._largest: Any = cupy.empty((), "int32")

    def __call__(self) -> None:
        self._buffer.data.memset_async(0, self._buffer.nbytes)
        self._buffer.max(out=self._largest)
