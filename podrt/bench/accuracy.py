"""Compare a contender's output with the float64 reference, on some rows of some requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.bench.case import Case
from podrt.bench.tensors import CaseTensors, fetch
from podrt.reference import reference_attention
from podrt.spec.batch import HybridBatch

#: Spacing of the numbers just below 1: the rounding step that errors are counted in.
STEPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
#: Steps allowed: one each for rounding the softmax weights and the result, twice over.
_ALLOWED_STEPS = 4
#: Rows checked at each end of a request.
_WINDOW_ROWS = 4


def tolerance_of(dtype: str) -> float:
    """Return the largest error of a right result, relative to the largest value of its row."""
    return _ALLOWED_STEPS * STEPS[dtype]


def largest_error(got: npt.NDArray[Any], expected: npt.NDArray[np.float64]) -> float:
    """Return the largest ``max|got - expected| / max|expected|`` of any row and head.

    Both are ``[rows, num_qo_heads, head_dim]``. NaN in `got` gives NaN; no rows give 0.
    """
    difference = np.abs(got.astype(np.float64) - expected).max(axis=2)
    return float((difference / np.abs(expected).max(axis=2)).max(initial=0.0))


@dataclass(frozen=True, eq=False)
class Expected:
    """Reference results of some rows.

    Attributes
    ----------
    rows : int array [checked]
        Which rows of q.
    requests : int array [checked]
        Which request each belongs to.
    out : float64 array [checked, num_qo_heads, head_dim]
    """

    rows: npt.NDArray[np.int64]
    requests: npt.NDArray[np.int64]
    out: npt.NDArray[np.float64]

    def error_of(self, out: Any, requests: slice) -> float:
        """Return the `largest_error` of the rows that were computed.

        Parameters
        ----------
        out : CuPy array [tokens, num_qo_heads, head_dim]
            NaN where nothing was written, which gives NaN.
        requests : slice
            The requests that were computed; others are not compared.
        """
        mine = (self.requests >= requests.start) & (self.requests < requests.stop)
        return largest_error(fetch(out, self.rows[mine]), self.out[mine])


def expected_of(tensors: CaseTensors) -> Expected:
    """Compute the reference for the ends of the first and the last request of each side."""
    windows = windows_of(tensors.case)
    starts = np.concatenate(([0], np.cumsum(tensors.case.q_lens)))
    outs, rows, requests = [], [], []
    for request, begin, end in windows:
        outs.append(_reference(tensors, int(starts[request]), request, begin, end))
        rows.append(starts[request] + np.arange(begin, end))
        requests.append(np.full(end - begin, request))
    return Expected(np.concatenate(rows), np.concatenate(requests), np.concatenate(outs))


def windows_of(case: Case) -> list[tuple[int, int, int]]:
    """Return ``(request, first token, end token)`` of what is checked."""
    prefills, total = len(case.prefill), len(case.kv_lens)
    sides = [side for side in ((0, prefills), (prefills, total)) if side[0] < side[1]]
    chosen = sorted({request for begin, end in sides for request in (begin, end - 1)})
    windows = []
    for request in chosen:
        q_len = case.q_lens[request]
        if q_len <= 2 * _WINDOW_ROWS:
            windows.append((request, 0, q_len))
        else:
            windows += [(request, 0, _WINDOW_ROWS), (request, q_len - _WINDOW_ROWS, q_len)]
    return windows


def _reference(
    tensors: CaseTensors, start: int, request: int, begin: int, end: int
) -> npt.NDArray[np.float64]:
    """Tokens `begin` to `end` of a request are a request whose keys end with its last token."""
    q_len, kv_len = tensors.case.q_lens[request], tensors.case.kv_lens[request]
    visible = kv_len - (q_len - end)
    keys, values = (
        _keys(cache, tensors, request, visible) for cache in (tensors.k_cache, tensors.v_cache)
    )
    batch = HybridBatch.contiguous(
        np.array([0, end - begin], np.int32), np.array([visible], np.int32)
    )
    q = tensors.q[start + begin : start + end].get()
    return reference_attention(q, keys, values, batch)[0]


def _keys(cache: Any, tensors: CaseTensors, request: int, visible: int) -> npt.NDArray[Any]:
    """Fetch the first keys of a request: ``[1, visible, num_kv_heads, head_dim]`` on the host."""
    if tensors.block_table is None or tensors.case.page_size is None:
        rows: npt.NDArray[Any] = cache[request, :visible].get()
    else:
        pages = tensors.block_table[request, : -(-visible // tensors.case.page_size)]
        rows = fetch(cache, pages).reshape(-1, *cache.shape[2:])[:visible]
    return rows[None]
