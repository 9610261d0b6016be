"""Compare results with the float64 reference, on windows of the rows of some requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from podrt.reference import reference_attention
from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch

#: Spacing of the numbers just below 1: the rounding step that errors are counted in.
STEPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
#: Steps allowed: one each for rounding the softmax weights and the result, twice over.
_ALLOWED_STEPS = 4
#: Rows checked at each end of a request by `windows_at_ends`.
_END_ROWS = 4
#: The LSE is float32 all the way; its error is absolute.
LSE_TOLERANCE = 1e-3


def tolerance_of(dtype: str) -> float:
    """Return the largest error of a right result, relative to the largest value of its row."""
    return _ALLOWED_STEPS * STEPS[dtype]


def largest_error(got: npt.NDArray[Any], expected: npt.NDArray[np.float64]) -> float:
    """Return the largest ``max|got - expected| / max|expected|`` of any row and head.

    Both are ``[rows, num_qo_heads, head_dim]``. NaN in `got` gives NaN; no rows give 0.
    """
    difference = np.abs(got.astype(np.float64) - expected).max(axis=2)
    return float((difference / np.abs(expected).max(axis=2)).max(initial=0.0))


class Window(NamedTuple):
    """Query tokens `begin` to `end` of a request."""

    request: int
    begin: int
    end: int


def windows_at_ends(request: int, q_len: int) -> list[Window]:
    """Return the first and the last few tokens of a request, or all of a short one."""
    if q_len <= 2 * _END_ROWS:
        return [Window(request, 0, q_len)]
    return [Window(request, 0, _END_ROWS), Window(request, q_len - _END_ROWS, q_len)]


class Source(Protocol):
    """Where the tensors of a batch are read from, be that host memory or a GPU."""

    @property
    def lengths(self) -> Sequence[tuple[int, int]]:
        """``(q_len, kv_len)`` of every request, whose query rows lie one after the other."""

    def read_q(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Return rows of q: ``[end - begin, num_qo_heads, head_dim]``."""

    def read_kv(self, request: int, num_keys: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the first keys and values of a request: ``[num_keys, num_kv_heads, head_dim]``."""


class Worst(NamedTuple):
    """The largest error, and where it is."""

    error: float
    row: int  # of q
    request: int
    head: int
    element: int

    def __str__(self) -> str:
        """Say where it is."""
        return (
            f"request {self.request}, row {self.row} of q, head {self.head}, element {self.element}"
        )


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
    lse : float64 array [checked, num_qo_heads]
    """

    rows: npt.NDArray[np.int64]
    requests: npt.NDArray[np.int64]
    out: npt.NDArray[np.float64]
    lse: npt.NDArray[np.float64]

    def of(self, requests: slice) -> Expected:
        """Return what is expected of some requests alone."""
        mine = (self.requests >= requests.start) & (self.requests < requests.stop)
        return Expected(self.rows[mine], self.requests[mine], self.out[mine], self.lse[mine])

    def error_of(self, got: npt.NDArray[Any]) -> float:
        """Return the `largest_error` of the output's `rows`, which alone are passed."""
        return largest_error(got, self.out)

    def worst_of(self, got: npt.NDArray[Any]) -> Worst:
        """Return `error_of` and where it is: NaN goes before any number."""
        difference = np.abs(got.astype(np.float64) - self.out)
        errors = difference.max(axis=2) / np.abs(self.out).max(axis=2)
        if not errors.size:
            return Worst(0.0, 0, 0, 0, 0)
        row, head = np.unravel_index(int(errors.argmax()), errors.shape)  # argmax finds NaN first
        request = int(self.requests[row])
        return Worst(
            float(errors[row, head]),
            int(self.rows[row]),
            request,
            int(head),
            int(difference[row, head].argmax()),
        )

    def lse_error_of(self, got: npt.NDArray[Any]) -> float:
        """Return the largest ``|lse - reference|`` of the `rows` and any head."""
        return float(np.abs(got.astype(np.float64) - self.lse).max(initial=0.0))


def expected_of(
    source: Source,
    windows: Sequence[Window],
    *,
    layer: AttentionSpec | None = None,
    sinks: npt.NDArray[Any] | None = None,
    tree_mask: npt.NDArray[np.uint64] | None = None,
) -> Expected:
    """Compute the reference for windows of requests.

    Parameters
    ----------
    source : Source
    windows : sequence of Window
    layer : AttentionSpec, optional
        Whose mask, soft-cap and scale are taken; if None a causal mask, no cap and
        ``head_dim ** -0.5``.
    sinks : float array [num_qo_heads], optional
    tree_mask : uint64 array [total tokens], optional
        Words of a layer with trees.
    """
    scores: dict[str, Any] = {"sinks": sinks}
    if layer is not None:
        scores |= {
            "sm_scale": layer.sm_scale,
            "causal": layer.mask.causal,
            "window_left": layer.mask.window_left,
            "logits_soft_cap": layer.logits_soft_cap,
        }
    may_see_later = tree_mask is not None or not (layer is None or layer.mask.causal)
    starts = np.concatenate(([0], np.cumsum([q_len for q_len, _ in source.lengths])))
    outs, lses, rows, requests = [], [], [], []
    for request, begin, end in windows:
        first = int(starts[request])
        computed = Window(request, begin, end)
        if may_see_later:
            computed = Window(request, 0, source.lengths[request][0])
            if tree_mask is not None:
                scores["tree_mask"] = tree_mask[first : first + computed.end]
        out, lse = _of_window(source, first, computed, scores)
        wanted = slice(begin - computed.begin, end - computed.begin)
        outs.append(out[wanted])
        lses.append(lse[wanted])
        rows.append(first + np.arange(begin, end))
        requests.append(np.full(end - begin, request))
    return Expected(*(np.concatenate(parts) for parts in (rows, requests, outs, lses)))


def _of_window(
    source: Source, first_row: int, window: Window, scores: dict[str, Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Tokens `begin` to `end` of a request are a request whose keys end with its last token."""
    q_len, kv_len = source.lengths[window.request]
    visible = kv_len - (q_len - window.end)
    keys, values = source.read_kv(window.request, visible)
    batch = HybridBatch.contiguous(
        np.array([0, window.end - window.begin], np.int32), np.array([visible], np.int32)
    )
    q = source.read_q(first_row + window.begin, first_row + window.end)
    return reference_attention(q, keys[None], values[None], batch, **scores)
