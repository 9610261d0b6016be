"""Inputs of the demo: hybrid batches of a trace, with random tensors over shuffled pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.spec.attention import AttentionSpec, make_spec
from podrt.spec.batch import HybridBatch
from podrt.spec.types import DType
from podrt.tensors.view import numpy_dtype
from podrt.workloads.accuracy import Expected, Window, expected_of
from podrt.workloads.chunked_prefill import HybridStep
from podrt.workloads.pages import shuffled_pages

#: Pages that no request owns, full of NaN; unused block-table entries point at one of them.
_SPARE_PAGES = 8
#: Requests with more pairs of row and key than this are checked in windows of rows.
_MAX_PAIRS = 1 << 20
_WINDOW_ROWS = 64


@dataclass(frozen=True)
class Geometry:
    """Shape of the attention layer and of its paged cache."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: DType

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The element type, bfloat16 by ml_dtypes."""
        return numpy_dtype(self.dtype)

    def spec(self) -> AttentionSpec:
        """Return the layer that the planner works for; raises as `podrt.HybridAttention`."""
        heads = self.num_qo_heads, self.num_kv_heads
        return make_spec(*heads, self.head_dim, self.page_size, "NHD", self.dtype)


@dataclass(frozen=True, eq=False)
class Workload:
    """One hybrid batch with its tensors, on the host.

    Attributes
    ----------
    step : HybridStep
        Where the batch comes from.
    q : array [total_tokens, num_qo_heads, head_dim]
    k_cache, v_cache : arrays [pages, page_size, num_kv_heads, head_dim]
        NaN wherever no request's key lies.
    block_table : int32 array [requests, max_pages]
    """

    step: HybridStep
    q: npt.NDArray[Any]
    k_cache: npt.NDArray[Any]
    v_cache: npt.NDArray[Any]
    block_table: npt.NDArray[np.int32]

    @property
    def batch(self) -> HybridBatch:
        """Lengths and page geometry of the whole batch."""
        return HybridBatch.from_block_table(
            self.step.qo_indptr,
            self.step.kv_lens,
            shape=self.block_table.shape,
            row_stride=self.block_table.shape[1],
            page_size=self.page_size,
        )

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return int(self.k_cache.shape[1])

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """``(q_len, kv_len)`` of every request."""
        return self.step.lengths

    def read_q(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Return rows of q."""
        return self.q[begin:end]

    def read_kv(self, request: int, num_keys: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the first keys and values of a request: ``[num_keys, num_kv_heads, head_dim]``."""
        pages = self.block_table[request, : -(-num_keys // self.page_size)]
        keys, values = (
            cache[pages].reshape(-1, *cache.shape[2:])[:num_keys]
            for cache in (self.k_cache, self.v_cache)
        )
        return keys, values

    def expected(self) -> Expected:
        """Compute the reference for every request, long ones in three windows of their rows."""
        return expected_of(
            self,
            [
                Window(request, begin, end)
                for request, lengths in enumerate(self.lengths)
                for begin, end in _windows(*lengths)
            ],
        )


def make_workload(step: HybridStep, geometry: Geometry, rng: np.random.Generator) -> Workload:
    """Return normally distributed tensors for a step, on pages in random order."""
    block_table, num_pages = shuffled_pages(
        step.kv_lens, geometry.page_size, rng, num_spare=_SPARE_PAGES
    )
    used = _used_slots(step.kv_lens, block_table, num_pages, geometry.page_size)
    heads = (geometry.num_kv_heads, geometry.head_dim)
    caches = []
    for _ in ("k", "v"):
        cache = np.full((num_pages, geometry.page_size, *heads), np.nan, geometry.numpy_dtype)
        cache[used] = _normal((int(used.sum()), *heads), geometry, rng)
        caches.append(cache)
    q = _normal((step.total_tokens, geometry.num_qo_heads, geometry.head_dim), geometry, rng)
    return Workload(step, q, caches[0], caches[1], block_table)


def _used_slots(
    kv_lens: npt.NDArray[np.int32],
    block_table: npt.NDArray[np.int32],
    num_pages: int,
    page_size: int,
) -> npt.NDArray[np.bool_]:
    """Which slots ``[pages, page_size]`` hold a key of some request."""
    used = np.zeros((num_pages, page_size), np.bool_)
    for kv_len, pages in zip(kv_lens.tolist(), block_table, strict=True):
        tokens = np.arange(kv_len)
        used[pages[tokens // page_size], tokens % page_size] = True
    return used


def _normal(
    shape: tuple[int, ...], geometry: Geometry, rng: np.random.Generator
) -> npt.NDArray[Any]:
    return rng.standard_normal(shape, np.float32).astype(geometry.numpy_dtype)


def _windows(q_len: int, kv_len: int) -> list[tuple[int, int]]:
    if q_len * kv_len <= _MAX_PAIRS or q_len <= 3 * _WINDOW_ROWS:
        return [(0, q_len)]
    begins = (0, (q_len - _WINDOW_ROWS) // 2, q_len - _WINDOW_ROWS)
    return [(begin, begin + _WINDOW_ROWS) for begin in begins]
