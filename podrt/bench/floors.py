"""What no kernel, or no kernel so far, gets below: the oracle and the co-run floor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from podrt.policy.calibration import H200


def fastest(times_us: Iterable[float | None]) -> float | None:
    """Return the smallest time; None if nothing was measured."""
    return min((time_us for time_us in times_us if time_us is not None), default=None)


def oracle_us(prefill_us: float | None, decode_us: float | None) -> float | None:
    """Return the time of a perfect overlap: the longer of the best prefill and decode alone.

    None stands for a side that the batch does not have; with neither, the result is None.
    """
    return max((side for side in (prefill_us, decode_us) if side is not None), default=None)


def co_run_floor_us(prefill_us: float | None, decode_us: float | None) -> float | None:
    """Return the oracle times what sharing the SMs costs at best; None as in `oracle_us`.

    The factors are those of a synthetic kernel with the best sharing (`design/benchmark.md`).
    """
    longer = oracle_us(prefill_us, decode_us)
    if longer is None or prefill_us is None or decode_us is None:
        return longer
    co_run = H200.co_run
    factors = co_run.decode_longer if decode_us >= prefill_us else co_run.prefill_longer
    return float(longer * np.interp(min(prefill_us, decode_us) / longer, co_run.shares, factors))
