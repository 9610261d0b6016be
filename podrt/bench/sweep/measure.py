"""What of a sweep needs a GPU: a case's tensors, its variants checked and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from podrt.bench.case import Case
from podrt.bench.contenders import launch_of
from podrt.bench.sweep.points import Point
from podrt.bench.tensors import CaseTensors, fetch, free_memory, make_tensors
from podrt.bench.timing import Enqueue, Timing, Work, capture_graph, time_all
from podrt.gpu.device import load_cupy
from podrt.workloads.accuracy import Expected, tolerance_of

_WARM_UP_S = 0.1


class Checked(NamedTuple):
    """A variant that ran: how wrong it was where, and what enqueues it again.

    Attributes
    ----------
    max_rel_err, tolerance : float
    worst : str
        Where the largest error is.
    enqueue : callable
    """

    max_rel_err: float
    tolerance: float
    worst: str
    enqueue: Enqueue

    @property
    def is_right(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.max_rel_err <= self.tolerance


class Bench(Protocol):
    """Runs variants on one case."""

    def check(self, point: Point) -> Checked:
        """Run a variant once and compare it with float64; raises whatever stops it."""

    def time(self, launches: Sequence[Enqueue], samples: int) -> list[Timing | Exception]:
        """Time launches in turns."""


#: Makes the bench of a case, for as long as the context lasts.
OpenBench = Callable[[Case], AbstractContextManager[Bench]]


@dataclass(frozen=True, eq=False)
class GpuBench:
    """The `Bench` of the current GPU.

    Attributes
    ----------
    tensors : CaseTensors
    expected : Expected
        Of the ends of the first and last request of each side.
    """

    tensors: CaseTensors
    expected: Expected

    def check(self, point: Point) -> Checked:
        """Run a variant once and compare it with float64; raises whatever stops it."""
        tensors = self.tensors
        tensors.poison()
        _, enqueue = launch_of(tensors, point.requests, point.combination.policy())
        enqueue()
        mine = self.expected.of(point.requests)
        worst = mine.worst_of(fetch(tensors.out, mine.rows))
        return Checked(worst.error, tolerance_of(tensors.case.dtype), str(worst), enqueue)

    def time(self, launches: Sequence[Enqueue], samples: int) -> list[Timing | Exception]:
        """Time launches in turns."""
        works = [Work(launch, capture_graph) for launch in launches]
        return time_all(works, samples=samples, warm_up_s=_WARM_UP_S)


@contextmanager
def gpu_bench(case: Case) -> Iterator[GpuBench]:
    """Make a case's tensors on the GPU, on a stream of its own.

    Raises
    ------
    DeviceError
        The case does not fit on the GPU.
    """
    free_memory()
    with load_cupy().cuda.Stream(non_blocking=True):
        tensors = make_tensors(case)
        yield GpuBench(tensors, tensors.expected())
