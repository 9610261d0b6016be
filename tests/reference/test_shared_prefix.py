"""A batch in two parts, merged, is the whole batch: in float64, without a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from podrt.reference import reference_attention
from podrt.reference.merge import reference_merge
from podrt.spec.batch import HybridBatch
from podrt.spec.prefixes import find_prefixes, in_parts

PAGE = 8
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16


@pytest.mark.parametrize("seed", range(8))
def test_both_parts_merged_are_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests = 7
    q_lens = rng.choice([0, 1, 1, 2, 9], requests).astype(np.int32)
    kv_lens = (q_lens + rng.integers(0, 60, requests)).astype(np.int32)
    pages = rng.permutation(requests * 10).astype(np.int32).reshape(requests, 10)
    for begin, end, shared in ((0, 3, 2), (4, 7, int(rng.integers(1, 5)))):
        pages[begin:end, :shared] = pages[begin, :shared]
    indptr = np.concatenate(([0], np.cumsum(q_lens))).astype(np.int32)
    batch = HybridBatch.from_block_table(
        indptr, kv_lens, shape=pages.shape, row_stride=10, page_size=PAGE
    )
    q = rng.standard_normal((int(indptr[-1]), HEADS, HEAD_DIM))
    k, v = rng.standard_normal((2, pages.size, PAGE, KV_HEADS, HEAD_DIM))
    table = pages.reshape(-1)
    found = find_prefixes(batch, table)
    parts = in_parts(batch, found)
    states = [
        reference_attention(q, k, v, part, page_table=table, page_size=PAGE, causal=causal)
        for part, causal in ((parts.shared, False), (parts.own, True))
    ]
    outs, lses = zip(*states, strict=True)
    out, lse = reference_merge(outs, lses)
    expected, expected_lse = reference_attention(q, k, v, batch, page_table=table, page_size=PAGE)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-12)
