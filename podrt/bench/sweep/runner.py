"""Run a sweep: case by case, what is missing is checked, then timed beside the automatic choice.

Every record is on the disk before the next one is measured. A variant that does not end would hold
up everything for ever, so that a watch ends the process, with a record that says so.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from podrt.bench.peers import error_text
from podrt.bench.sweep.measure import Bench, Checked, OpenBench
from podrt.bench.sweep.points import Point
from podrt.bench.sweep.records import AUTO, Journal, Result, Sweep
from podrt.bench.timing import Timing
from podrt.errors import DeviceError

#: Variants that take turns: all of them hold memory at once.
_AT_ONCE = 24
#: No check takes as long, and no sample so much longer than that.
_LIMIT_S, _SAMPLE_S = 60.0, 0.1
#: Exit code of a process that a variant has held up.
HUNG = 4

OnResult = Callable[[Result], None]


class Outcome(NamedTuple):
    """What became of a sweep.

    Attributes
    ----------
    measured, kept : int
        Results that are new, and that the file had already.
    interrupted : bool
        Somebody pressed Ctrl-C.
    """

    measured: int
    kept: int
    interrupted: bool


@dataclass(frozen=True)
class Runner:
    """Measures points into a journal.

    Attributes
    ----------
    journal : Journal
    environment : str
        Id of the environment that results are of, which the journal has by then.
    open_bench : callable
        Makes the bench of a case.
    gpu_error : callable
        Says what is wrong with the GPU, or returns None.
    samples : int
    on_result : callable
        Called with every result, those that the file has included.
    limit_s : float
        Longest time that a check may take; timing may take longer, by the number of samples.
    """

    journal: Journal
    environment: str
    open_bench: OpenBench
    gpu_error: Callable[[], Exception | None]
    samples: int
    on_result: OnResult = lambda result: None
    limit_s: float = _LIMIT_S

    def run(self, points: Sequence[Point]) -> Outcome:
        """Measure what the journal lacks, until it is done or somebody presses Ctrl-C.

        Raises
        ------
        DeviceError
            The GPU stopped working; what was measured before is kept.
        """
        before = {result.key: result for result in self.journal.sweep.results}
        missing = missing_of(points, self.journal.sweep)
        kept = [before[point.key] for point in points if point not in missing]
        for result in kept:
            self.on_result(result)
        measured = 0
        try:
            for _, group in groupby(missing, key=lambda point: point.case.name):
                for result in self._case(list(group), points):
                    self.journal.add(result)
                    self.on_result(result)
                    measured += 1
        except KeyboardInterrupt:
            return Outcome(measured, len(kept), interrupted=True)
        return Outcome(measured, len(kept), interrupted=False)

    def _case(self, missing: Sequence[Point], points: Sequence[Point]) -> Iterator[Result]:
        name = missing[0].case.name
        auto = next(point for point in points if point.case.name == name and point.name == AUTO)
        try:
            with self.open_bench(auto.case) as bench:
                anchor = self._check(bench, auto)
                for begin in range(0, len(missing), _AT_ONCE):
                    yield from self._part(bench, missing[begin : begin + _AT_ONCE], auto, anchor)
        except DeviceError as error:  # its tensors do not fit
            self._require_gpu(name)
            yield from (self._failed(point, error) for point in missing)

    def _part(
        self, bench: Bench, part: Sequence[Point], auto: Point, anchor: Checked | Result
    ) -> Iterator[Result]:
        """Check some variants, then time those that are right beside the automatic choice."""
        right: dict[Point, Checked] = {}
        if isinstance(anchor, Checked):
            right[auto] = anchor
        for point in part:
            checked = anchor if point is auto else self._check(bench, point)
            if isinstance(checked, Result):
                yield checked
            else:
                right[point] = checked
        if not right.keys() & set(part):
            return
        timings = self._time(bench, right)
        auto_us = _median_us(timings.get(auto))
        for point in part:
            if point in timings:
                yield self._timed(point, right[point], timings[point], auto_us)

    def _check(self, bench: Bench, point: Point) -> Checked | Result:
        """Run a variant once; return what it gave, or the result that it was wrong or failed."""
        try:
            with self._watch(point):
                checked = bench.check(point)
        except Exception as error:  # a compiler's refusal, no memory, ...
            result = self._failed(point, error)
            self._require_gpu(point.case.name, result)
            return result
        if checked.is_right:
            return checked
        off, allowed = checked.max_rel_err, checked.tolerance
        return point.result(
            self.environment,
            "wrong",
            reason=f"error {off:.2g} > {allowed:.2g} at {checked.worst}",
            **_error_fields(checked),
        )

    def _time(self, bench: Bench, right: dict[Point, Checked]) -> dict[Point, Timing | Exception]:
        launches = [checked.enqueue for checked in right.values()]
        try:
            with self._watch(seconds=self.limit_s + _SAMPLE_S * self.samples * len(launches)):
                timings = bench.time(launches, self.samples)
        except Exception as error:  # no memory for the graphs, say
            timings = [error] * len(right)
        self._require_gpu(next(iter(right)).case.name)
        return dict(zip(right, timings, strict=True))

    def _timed(
        self, point: Point, checked: Checked, timing: Timing | Exception, auto_us: float | None
    ) -> Result:
        if isinstance(timing, Exception):
            return self._failed(point, timing)
        return point.result(
            self.environment,
            "ok",
            **_error_fields(checked),
            time_us=round(timing.median_us, 2),
            quartiles_us=[round(us, 2) for us in timing.quartiles_us],
            samples_us=[round(us, 2) for us in timing.samples_us],
            method=timing.method,
            sm_clock_mhz=timing.sm_clock_mhz,
            auto_us=auto_us,
        )

    def _failed(self, point: Point, error: Exception) -> Result:
        return point.result(self.environment, "failed", reason=error_text(error))

    def _require_gpu(self, case: str, result: Result | None = None) -> None:
        """Raise DeviceError if the GPU has stopped working, once a result is kept."""
        error = self.gpu_error()
        if error is None:
            return
        if result is not None:
            self.journal.add(result)
        raise DeviceError(
            f"the GPU stopped working in case {case!r}: {error}; what was measured before is kept, "
            "go on with the same command in a new process"
        ) from error

    @contextmanager
    def _watch(self, point: Point | None = None, seconds: float | None = None) -> Iterator[None]:
        """End the process if what is done inside takes too long; of a point there is a record."""
        limit_s = seconds or self.limit_s
        timer = threading.Timer(limit_s, self._give_up, (point, limit_s))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self, point: Point | None, limit_s: float) -> None:
        what = "a round of timing" if point is None else f"{point.name} on {point.case.name}"
        text = f"{what} did not end within {limit_s:.0f} s"
        if point is not None:
            self.journal.add(point.result(self.environment, "hung", reason=text))
        print(f"error: {text}; go on with the same command", file=sys.stderr, flush=True)
        os._exit(HUNG)


def missing_of(points: Sequence[Point], sweep: Sweep) -> list[Point]:
    """Return the points that a sweep has no result of, or only that they failed."""
    return [point for point in points if point.key not in sweep.done]


def _error_fields(checked: Checked) -> dict[str, Any]:
    error = checked.max_rel_err
    return {
        "max_rel_err": float(f"{error:.4g}") if math.isfinite(error) else None,
        "tolerance": checked.tolerance,
        "worst": checked.worst,
    }


def _median_us(timing: Timing | Exception | None) -> float | None:
    return round(timing.median_us, 2) if isinstance(timing, Timing) else None
