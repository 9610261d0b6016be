"""Time calls on the host's clock, garbage collection on, as a server runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

Call = Callable[[], object]

#: Calls before the first sample: everything is compiled, loaded, allocated and looked up.
_WARM_UP = 10


def interpreter_ns(turns: int = 100_000, samples: int = 9) -> float:
    """Return the time of one turn of a Python loop that does nothing but add, in ns."""

    def loop() -> int:
        total = 0
        for number in range(turns):
            total += number
        return total

    return round(sorted(_burst_us([loop]) for _ in range(samples))[samples // 2] * 1e3 / turns, 1)


def time_bursts(calls: Sequence[Call], synchronize: Call, samples: int) -> list[float]:
    """Return the mean time of a call, in us, of `samples` bursts that each follow a wait.

    A burst makes every call once: the layers of a model.
    """
    for _ in range(_WARM_UP):
        _burst_us(calls)
        synchronize()
    times_us = []
    for _ in range(samples):
        synchronize()
        times_us.append(_burst_us(calls) / len(calls))
    synchronize()
    return times_us


def time_alone(call: Call, synchronize: Call, samples: int) -> list[float]:
    """Return the time of single calls, in us, each after a wait for the GPU."""
    return time_bursts([call], synchronize, samples)


def time_after(
    prepare: Callable[[int], object], call: Call, synchronize: Call, samples: int
) -> list[float]:
    """Return the time of `call`, in us, each right after ``prepare(step)``."""
    times_us = []
    for step in range(_WARM_UP + samples):
        synchronize()
        prepare(step)
        times_us.append(_burst_us([call]))
    synchronize()
    return times_us[_WARM_UP:]


def time_steps(
    make_call: Callable[[int], Call], synchronize: Call, samples: int, *, warm_up: int = _WARM_UP
) -> list[float]:
    """Return the time of ``make_call(step)()``, in us; making the call is not in it."""
    times_us = []
    for step in range(warm_up + samples):
        call = make_call(step)
        synchronize()
        times_us.append(_burst_us([call]))
    synchronize()
    return times_us[warm_up:]


def time_apart(
    make_calls: Callable[[int], Sequence[Call]], between: Call, synchronize: Call, samples: int
) -> list[float]:
    """Return what the calls of each step take together, in us, without what comes between them.

    `between` is called before each of them, as an engine does other work.
    """
    times_us = []
    for step in range(_WARM_UP + samples):
        calls = make_calls(step)
        synchronize()
        total_us = 0.0
        for call in calls:
            between()
            total_us += _burst_us([call])
        times_us.append(total_us)
    synchronize()
    return times_us[_WARM_UP:]


def _burst_us(calls: Iterable[Call]) -> float:
    begin_ns = time.perf_counter_ns()
    for call in calls:
        call()
    return (time.perf_counter_ns() - begin_ns) / 1e3
