"""Measure one case: all contenders made, checked against the reference, and timed together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from podrt.bench.case import Case
from podrt.bench.contenders import (
    DECODE_ALONE,
    PREFILL_ALONE,
    SERIAL,
    STREAMS,
    Contender,
    make_contender,
    names_for,
)
from podrt.bench.floors import co_run_floor_us, fastest, oracle_us
from podrt.bench.peers import error_text, peer_works
from podrt.bench.results import Row, decode_summary
from podrt.bench.tensors import CaseTensors, fetch, make_tensors
from podrt.bench.timing import Timing, Work, capture_graph, time_all
from podrt.workloads.accuracy import Expected, tolerance_of


@dataclass
class _Attempt:
    """How far one of podrt's contenders came."""

    variant: str | None = None
    predicted_us: float | None = None
    work: Work | None = None
    max_rel_err: float | None = None
    error: str | None = None
    timing: Timing | None = None

    @property
    def time_us(self) -> float | None:
        return None if self.timing is None else round(self.timing.median_us, 2)


@dataclass
class _PeerTimes:
    times_us: dict[str, float | None] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def measure(case: Case, peers: list[str]) -> list[Row]:
    """Return a row for each of podrt's contenders, on CuPy's current stream.

    Parameters
    ----------
    case : Case
    peers : list of str
        Names in `podrt.bench.peers.PEERS` to set beside podrt.

    Raises
    ------
    DeviceError
        The case does not fit on the GPU.
    """
    tensors = make_tensors(case)
    expected = tensors.expected()
    attempts = {name: _attempt(name, tensors, expected) for name in names_for(case)}
    works, errors = peer_works(peers, tensors)
    peer_times = _PeerTimes({**dict.fromkeys(works), **dict.fromkeys(errors)}, errors)
    _time(attempts, works, peer_times)
    return _rows(case, attempts, peer_times)


def failed_rows(case: Case, error: Exception) -> list[Row]:
    """Return the rows of a case that could not even be set up."""
    reason = error_text(error)
    attempts = {name: _Attempt(error=reason) for name in names_for(case)}
    return _rows(case, attempts, _PeerTimes())


def _attempt(name: str, tensors: CaseTensors, expected: Expected) -> _Attempt:
    """Make a contender and check its output; one that is wrong is never timed."""
    try:
        contender = make_contender(name, tensors)
        error = _error_of(contender, tensors, expected)
    except Exception as failure:  # a policy this version lacks, a compiler's refusal, ...
        return _Attempt(error=error_text(failure))
    made = _Attempt(contender.variant, contender.predicted_us)
    if not error <= tolerance_of(tensors.case.dtype):  # NaN too
        made.error = f"wrong result: error {error:.2g} > {tolerance_of(tensors.case.dtype):.2g}"
        return made
    made.work, made.max_rel_err = Work(contender.enqueue, capture_graph), error
    return made


def _error_of(contender: Contender, tensors: CaseTensors, expected: Expected) -> float:
    tensors.poison()
    contender.enqueue()
    mine = expected.of(contender.requests)
    return mine.error_of(fetch(tensors.out, mine.rows))


def _time(attempts: Mapping[str, _Attempt], works: dict[str, Work], peers: _PeerTimes) -> None:
    """Time everything together and note times and failures where they belong."""
    runnable = [attempt for attempt in attempts.values() if attempt.work is not None]
    mine = [attempt.work for attempt in runnable if attempt.work is not None]
    timings = time_all([*mine, *works.values()])
    for attempt, timing in zip(runnable, timings, strict=False):
        if isinstance(timing, Timing):
            attempt.timing = timing
        else:
            attempt.error = error_text(timing)
    for name, timing in zip(works, timings[len(mine) :], strict=True):
        if isinstance(timing, Timing):
            peers.times_us[name] = round(timing.median_us, 2)
        else:
            peers.errors[name] = error_text(timing)


def _rows(case: Case, attempts: Mapping[str, _Attempt], peers: _PeerTimes) -> list[Row]:
    times_us = {name: attempt.time_us for name, attempt in attempts.items()}
    best = {
        side: _best_alone(side, case, times_us, peers.times_us)
        for side in (PREFILL_ALONE, DECODE_ALONE)
    }
    sides = (best[PREFILL_ALONE], best[DECODE_ALONE])
    # A batch of two sides of which one could not be timed alone has no bound.
    known = None not in sides or not case.is_hybrid
    return [
        Row(
            case=case.name,
            num_qo_heads=case.num_qo_heads,
            num_kv_heads=case.num_kv_heads,
            head_dim=case.head_dim,
            dtype=case.dtype,
            page_size=case.page_size,
            prefill=[list(lengths) for lengths in case.prefill],
            decode=decode_summary(case.decode),
            variant=attempt.variant,
            policy=name,
            time_us=attempt.time_us,
            quartiles_us=_quartiles_us(attempt),
            samples_us=[round(us, 2) for us in attempt.timing.samples_us] if attempt.timing else [],
            method=attempt.timing.method if attempt.timing else None,
            sm_clock_mhz=attempt.timing.sm_clock_mhz if attempt.timing else None,
            error=attempt.error,
            own_serial_us=times_us.get(SERIAL),
            own_streams_us=times_us.get(STREAMS),
            peers_us=peers.times_us,
            peer_errors=peers.errors,
            oracle_us=oracle_us(*sides) if known else None,
            floor_us=co_run_floor_us(*sides) if known else None,
            max_rel_err=attempt.max_rel_err,
            predicted_us=None if attempt.predicted_us is None else round(attempt.predicted_us, 2),
            window_left=case.window_left,
            logits_soft_cap=case.logits_soft_cap,
            v_head_dim=case.v_head_dim,
            sinks=case.sinks,
        )
        for name, attempt in attempts.items()
    ]


def _quartiles_us(attempt: _Attempt) -> list[float] | None:
    if attempt.timing is None:
        return None
    return [round(quartile, 2) for quartile in attempt.timing.quartiles_us]


def _best_alone(
    side: str,
    case: Case,
    times_us: Mapping[str, float | None],
    peers_us: Mapping[str, float | None],
) -> float | None:
    """Return the best time of one side alone; a case of one side is alone whatever its policy."""
    only = PREFILL_ALONE if case.prefill else DECODE_ALONE
    own = [times_us.get(side)] if case.is_hybrid else list(times_us.values())
    if not case.is_hybrid and side != only:
        return None
    return fastest([*own, *(us for name, us in peers_us.items() if name.endswith(side))])
