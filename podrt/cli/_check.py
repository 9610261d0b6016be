"""Compare a result of the demo with the float64 reference, on a stated share of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.bench.accuracy import largest_error
from podrt.reference import flat_page_table, reference_attention
from podrt.workloads.random_batch import Workload, batch_of

#: The LSE is float32 all the way; its error is absolute.
LSE_TOLERANCE = 1e-3

#: Requests with more pairs of row and key than this are checked in windows of rows.
_MAX_PAIRS = 1 << 20
_WINDOW_ROWS = 64


@dataclass(frozen=True, eq=False)
class Expected:
    """Reference results of some rows of a workload.

    Attributes
    ----------
    rows : int array [checked]
        Which rows of q.
    out : float64 array [checked, num_qo_heads, head_dim]
    lse : float64 array [checked, num_qo_heads]
    """

    rows: npt.NDArray[np.int64]
    out: npt.NDArray[np.float64]
    lse: npt.NDArray[np.float64]

    def error_of(self, out: npt.NDArray[Any]) -> float:
        """Return the `largest_error` of the checked rows."""
        return largest_error(out[self.rows], self.out)

    def lse_error_of(self, lse: npt.NDArray[Any]) -> float:
        """Return the largest ``|lse - reference|`` of any row and head."""
        return float(np.abs(lse[self.rows].astype(np.float64) - self.lse).max())


def expected_of(workload: Workload) -> Expected:
    """Compute the causal reference for every request, long ones in three windows of their rows."""
    windows = [
        (request, begin, end)
        for request, (q_len, kv_len) in enumerate(
            zip(workload.step.q_lens.tolist(), workload.step.kv_lens.tolist(), strict=True)
        )
        for begin, end in _windows(q_len, kv_len)
    ]
    requests, begins, ends = np.array(windows, np.int32).T
    starts = workload.batch.qo_indptr[requests]
    rows = np.concatenate(
        [np.arange(*span) for span in zip(starts + begins, starts + ends, strict=True)]
    )
    # A window of rows is a request of its own whose keys end with the window's last token.
    kv_lens = workload.step.kv_lens[requests] - (workload.step.q_lens[requests] - ends)
    block_table = workload.block_table[requests]
    out, lse = reference_attention(
        workload.q[rows],
        workload.k_cache,
        workload.v_cache,
        batch_of(ends - begins, kv_lens, block_table, workload.page_size),
        page_table=flat_page_table(block_table),
        page_size=workload.page_size,
    )
    return Expected(rows, out, lse)


def _windows(q_len: int, kv_len: int) -> list[tuple[int, int]]:
    if q_len * kv_len <= _MAX_PAIRS or q_len <= 3 * _WINDOW_ROWS:
        return [(0, q_len)]
    begins = (0, (q_len - _WINDOW_ROWS) // 2, q_len - _WINDOW_ROWS)
    return [(begin, begin + _WINDOW_ROWS) for begin in begins]
