"""One ragged batch with its tensors, shared by the tests of the front door."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from podrt.reference import reference_attention
from podrt.spec.batch import HybridBatch

PAGE_SIZE = 16
#: A decode, two prefills, a request without queries and one without keys; in no order.
Q_LENS, KV_LENS = [1, 20, 0, 7, 2], [50, 33, 12, 7, 0]
QO_INDPTR = np.cumsum([0, *Q_LENS]).astype(np.int32)


def dtype_of(name: str) -> Any:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


class Batch:
    """Tensors of one batch: contiguous, and over shuffled pages; unused slots hold NaN."""

    def __init__(self, dtype: str = "float16", heads: tuple[int, int] = (8, 2)) -> None:
        rng = np.random.default_rng(3)
        max_pages = -(-max(KV_LENS) // PAGE_SIZE)
        shape = (2, len(KV_LENS), max_pages * PAGE_SIZE, heads[1], 64)
        self.q = rng.standard_normal((sum(Q_LENS), heads[0], 64)).astype(dtype_of(dtype))
        caches = rng.standard_normal(shape).astype(dtype_of(dtype))
        for request, kv_len in enumerate(KV_LENS):
            caches[:, request, kv_len:] = np.nan
        self.k, self.v = caches
        pages = rng.permutation(2 * len(KV_LENS) * max_pages)[: len(KV_LENS) * max_pages]
        self.block_table = pages.astype(np.int32).reshape(len(KV_LENS), max_pages)
        self.k_pages, self.v_pages = (self.scattered(cache) for cache in (self.k, self.v))
        self.kv_lens = np.array(KV_LENS, np.int32)

    def scattered(self, cache: np.ndarray) -> np.ndarray:
        """The same keys or values in pages, at the places that `block_table` says."""
        requests, max_pages = self.block_table.shape
        pages = np.full((2 * requests * max_pages, PAGE_SIZE, *cache.shape[2:]), np.nan)
        pages = pages.astype(cache.dtype)
        pages[self.block_table] = cache.reshape(requests, max_pages, *pages.shape[1:])
        return pages

    @property
    def ragged_pages(self) -> dict[str, np.ndarray]:
        """The block table as kv_indptr and kv_indices, without the pages that nobody needs."""
        counts = -(-self.kv_lens // PAGE_SIZE)
        rows = [row[:count] for row, count in zip(self.block_table, counts, strict=True)]
        return {
            "kv_indptr": np.cumsum([0, *counts]).astype(np.int32),
            "kv_indices": np.concatenate(rows),
        }

    def expected(self, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        batch = HybridBatch.contiguous(QO_INDPTR, self.kv_lens)
        return reference_attention(self.q, self.k, self.v, batch, **options)
