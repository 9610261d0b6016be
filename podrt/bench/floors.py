"""What no kernel, or no kernel so far, gets below: the oracle and the co-run floor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

#: Shorter side over longer side, by their times alone.
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Time of both over the longer side alone, as a synthetic kernel reached on an H100 with the best
#: sharing of the SMs (`design/benchmark.md`), where decode is the longer side and where prefill is.
_DECODE_LONGER = (1.0, 1.01, 1.02, 1.08, 1.24)
_PREFILL_LONGER = (1.0, 1.07, 1.13, 1.19, 1.24)


def fastest(times_us: Iterable[float | None]) -> float | None:
    """Return the smallest time; None if nothing was measured."""
    return min((time_us for time_us in times_us if time_us is not None), default=None)


def oracle_us(prefill_us: float | None, decode_us: float | None) -> float | None:
    """Return the time of a perfect overlap: the longer of the best prefill and decode alone.

    None stands for a side that the batch does not have; with neither, the result is None.
    """
    return max((side for side in (prefill_us, decode_us) if side is not None), default=None)


def co_run_floor_us(prefill_us: float | None, decode_us: float | None) -> float | None:
    """Return the oracle times what sharing the SMs costs at best; None as in `oracle_us`."""
    longer = oracle_us(prefill_us, decode_us)
    if longer is None or prefill_us is None or decode_us is None:
        return longer
    factors = _DECODE_LONGER if decode_us >= prefill_us else _PREFILL_LONGER
    return float(longer * np.interp(min(prefill_us, decode_us) / longer, _SHARES, factors))
