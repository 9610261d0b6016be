"""Exact attention of a hybrid batch in float64, written to be read: the judge of the kernels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.spec.batch import HybridBatch
from podrt.spec.mask import Mask

Float64Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Size of the score matrix that is held at once; a few copies of it live at the same time.
_SCORE_BYTES = 64 << 20


def reference_attention(
    q: npt.NDArray[Any],
    k_cache: npt.NDArray[Any],
    v_cache: npt.NDArray[Any],
    batch: HybridBatch,
    *,
    page_table: npt.NDArray[np.int32] | None = None,
    page_size: int | None = None,
    causal: bool = True,
    sm_scale: float | None = None,
    window_left: int | None = None,
    logits_soft_cap: float | None = None,
    sinks: npt.NDArray[Any] | None = None,
    tree_mask: npt.NDArray[np.uint64] | None = None,
) -> tuple[Float64Array, Float64Array]:
    """Attention of every request, one after the other; only keys that a token sees are read.

    Token t of a request with q_len query tokens and kv_len keys stands at key
    ``kv_len - q_len + t``. It sees the keys up to there under the causal mask, and all keys without
    it; of those before it the last `window_left`. Query head h uses KV head ``h // (Hq // Hkv)``.

    Parameters
    ----------
    q : array [total_tokens, Hq, D]
        Any float dtype, bfloat16 of ml_dtypes included.
    k_cache, v_cache : arrays [B, L, Hkv, D] or [pages, page_size, Hkv, D]
        Contiguous, or paged when `page_table` is given. The D of values may be another, Dv.
    batch : HybridBatch
        Lengths and page geometry.
    page_table : int32 array, optional
        Flat page table that ``batch.page_begin`` points into.
    page_size : int, optional
        Tokens of a page, needed with `page_table`.
    causal : bool
        Bottom-right aligned causal mask.
    sm_scale : float, optional
        Factor of the scores; ``1 / sqrt(D)`` when None.
    window_left : int, optional
        Keys before its own that a token sees; all when None.
    logits_soft_cap : float, optional
        Scaled scores s become ``cap * tanh(s / cap)``.
    sinks : float array [Hq], optional
        Logits of one more key, whose value is 0, that every row sees; neither scaled nor capped.
    tree_mask : uint64 array [total_tokens], optional
        Bit j of a word is whether the token sees its request's j-th new key (`Mask.tree`).

    Returns
    -------
    out : float64 array [total_tokens, Hq, Dv]
        0 in rows that see no key.
    lse : float64 array [total_tokens, Hq]
        Natural log of the sum of the exponentials of the scores, sinks left out; -inf in such rows.

    Raises
    ------
    ValueError
        Shapes, the page size or the lengths of the batch do not agree.
    """
    _check(q, k_cache, v_cache, batch, page_table, page_size, sinks)
    scale = 1 / math.sqrt(q.shape[2]) if sm_scale is None else sm_scale
    mask = Mask(causal, window_left, tree_mask is not None)
    out = np.zeros((*q.shape[:2], v_cache.shape[3]))
    lse = np.full(q.shape[:2], -np.inf)
    group = q.shape[1] // k_cache.shape[2]
    for request in range(batch.num_requests):
        rows = slice(batch.qo_indptr[request], batch.qo_indptr[request + 1])
        if rows.start == rows.stop:  # its page numbers may be anything
            continue
        lengths = rows.stop - rows.start, int(batch.kv_lens[request])
        words = None if tree_mask is None else tree_mask[rows]
        scores_of = _Scores(mask, logits_soft_cap, words)
        first = int(mask.key_range(0, *lengths)[0])
        keys, values = (
            _of_request(c, batch, request, page_table, first) for c in (k_cache, v_cache)
        )
        for kv_head in range(k_cache.shape[2]):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            _one_head(
                q[rows, heads].astype(np.float64) * scale,
                keys[:, kv_head].astype(np.float64),
                values[:, kv_head].astype(np.float64),
                first,
                scores_of,
                out[rows, heads],
                lse[rows, heads],
            )
    if sinks is not None:
        # The share of the keys in a sum that the sink belongs to.
        out *= np.exp(-np.logaddexp(0.0, sinks - _finite(lse)))[:, :, None]
    return out, lse


class _Scores(NamedTuple):
    """What becomes of scaled products of q and k before the softmax."""

    mask: Mask
    cap: float | None
    words: npt.NDArray[np.uint64] | None  # of a request, where it may have a tree

    def of(
        self, products: Float64Array, tokens: Ints, first: int, q_len: int, kv_len: int
    ) -> Float64Array:
        """Cap and mask products ``[tokens, group, keys]`` of keys from `first` on."""
        scores = products if self.cap is None else self.cap * np.tanh(products / self.cap)
        keys = np.arange(first, first + scores.shape[2])
        hidden = ~self.mask.sees(tokens, keys, q_len, kv_len, self.words)
        scores[np.broadcast_to(hidden[:, None], scores.shape)] = -np.inf
        return scores


def _one_head(
    q: Float64Array,
    k: Float64Array,
    v: Float64Array,
    first: int,
    scores_of: _Scores,
    out: Float64Array,
    lse: Float64Array,
) -> None:
    """Fill out ``[q_len, group, Dv]`` and lse ``[q_len, group]``.

    `k` ``[kv_len - first, D]`` and `v` ``[kv_len - first, Dv]`` begin with key `first`.
    """
    q_len, group, head_dim = q.shape
    kv_len = first + len(k)
    begin, end = scores_of.mask.key_range(np.arange(q_len), q_len, kv_len)
    seeing = np.flatnonzero(end > begin)  # the other tokens see nothing
    chunk = max(1, _SCORE_BYTES // (8 * group * max(len(k), 1)))
    for at in range(0, len(seeing), chunk):
        tokens = seeing[at : at + chunk]
        low, high = int(begin[tokens].min()), int(end[tokens].max())
        seen = slice(low - first, high - first)
        products = q[tokens].reshape(-1, head_dim) @ k[seen].T
        scores = scores_of.of(products.reshape(-1, group, high - low), tokens, low, q_len, kv_len)
        top = scores.max(axis=2)
        weights = np.exp(scores - _finite(top)[:, :, None])
        total = weights.sum(axis=2)
        weighted = (weights.reshape(-1, high - low) @ v[seen]).reshape(-1, group, v.shape[1])
        sees = total > 0  # words may hide all keys
        out[tokens] = weighted / np.where(sees, total, 1.0)[:, :, None]
        lse[tokens] = np.where(sees, top + np.log(np.where(sees, total, 1.0)), -np.inf)


def _of_request(
    cache: npt.NDArray[Any],
    batch: HybridBatch,
    request: int,
    page_table: npt.NDArray[np.int32] | None,
    first: int,
) -> npt.NDArray[Any]:
    """Keys or values ``[kv_len - first, Hkv, D]`` of one request, from key `first` on."""
    kv_len = int(batch.kv_lens[request])
    if page_table is None:
        return cache[request, first:kv_len]
    page_size, kv_heads, head_dim = cache.shape[1:]
    begin, skipped = int(batch.page_begin[request]), first // page_size
    pages = page_table[begin + skipped : begin + math.ceil(kv_len / page_size)]
    rows = cache[pages].reshape(-1, kv_heads, head_dim)
    return rows[first - skipped * page_size : kv_len - skipped * page_size]


def _finite(lse: Float64Array) -> Float64Array:
    """What can be subtracted from: rows that see no key have -inf, and 0 as their output."""
    return np.where(np.isneginf(lse), 0.0, lse)


def _check(
    q: npt.NDArray[Any],
    k_cache: npt.NDArray[Any],
    v_cache: npt.NDArray[Any],
    batch: HybridBatch,
    page_table: npt.NDArray[np.int32] | None,
    page_size: int | None,
    sinks: npt.NDArray[Any] | None,
) -> None:
    if (page_table is None) != (page_size is None):
        raise ValueError(
            f"page_table and page_size={page_size} must be given together, or neither of them"
        )
    if page_size != batch.page_size:
        raise ValueError(f"page_size is {page_size}; the batch was made for {batch.page_size}")
    batch.require_cache(k_cache.shape, "k_cache")
    if v_cache.ndim != k_cache.ndim or v_cache.shape[:3] != k_cache.shape[:3]:
        raise ValueError(
            f"v_cache has shape {v_cache.shape}; expected {k_cache.shape}, as k_cache, but for the "
            "elements of a head"
        )
    if q.ndim != 3 or q.shape[0] != batch.total_tokens or q.shape[2] != k_cache.shape[3]:
        raise ValueError(
            f"q has shape {q.shape}; expected ({batch.total_tokens}, Hq, {k_cache.shape[3]})"
        )
    if q.shape[1] % k_cache.shape[2]:
        raise ValueError(
            f"q has {q.shape[1]} heads; expected a multiple of the {k_cache.shape[2]} of k_cache"
        )
    if sinks is not None and sinks.shape != q.shape[1:2]:
        raise ValueError(f"sinks has shape {sinks.shape}; expected {q.shape[1:2]}, one per head")
