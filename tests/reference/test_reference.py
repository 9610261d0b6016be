"""The reference against loops over single numbers, closed forms and poisoned memory."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from podrt.reference import attention, flat_page_table, reference_attention
from podrt.spec.batch import HybridBatch

HEAD_DIM = 8
PAGE_SIZE = 4


def lengths(q_lens: list[int], kv_lens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)


def naive(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    batch: HybridBatch,
    *,
    causal: bool = True,
    sm_scale: float = HEAD_DIM**-0.5,
    window_left: int | None = None,
    logits_soft_cap: float | None = None,
    sinks: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One dot product and one exponential at a time, over a contiguous cache."""
    out = np.zeros((*q.shape[:2], v.shape[3]))
    lse = np.full(q.shape[:2], -np.inf)
    group = q.shape[1] // k.shape[2]
    for i in range(batch.num_requests):
        q_len, kv_len = int(batch.q_lens[i]), int(batch.kv_lens[i])
        for t in range(q_len):
            own = kv_len - q_len + t
            seen = own + 1 if causal else kv_len
            first = 0 if window_left is None else max(0, own - window_left)
            for h in range(q.shape[1]):
                row, total = int(batch.qo_indptr[i]) + t, 0.0
                for j in range(first, seen):
                    score = sm_scale * float(np.dot(q[row, h], k[i, j, h // group]))
                    if logits_soft_cap is not None:
                        score = logits_soft_cap * math.tanh(score / logits_soft_cap)
                    total += math.exp(score)
                    out[row, h] += math.exp(score) * v[i, j, h // group]
                if total:
                    out[row, h] /= total + (0 if sinks is None else math.exp(sinks[h]))
                    lse[row, h] = math.log(total)
    return out, lse


def case(
    q_lens: list[int], kv_lens: list[int], group: int = 2, kv_heads: int = 2, seed: int = 0
) -> tuple[HybridBatch, np.ndarray, np.ndarray, np.ndarray]:
    """Batch with q, k and v; cache slots beyond the lengths hold NaN."""
    rng = np.random.default_rng(seed)
    batch = HybridBatch.contiguous(*lengths(q_lens, kv_lens))
    q = rng.standard_normal((batch.total_tokens, kv_heads * group, HEAD_DIM))
    k, v = rng.standard_normal((2, len(kv_lens), batch.max_kv_len + 3, kv_heads, HEAD_DIM))
    for i, kv_len in enumerate(kv_lens):
        k[i, kv_len:] = v[i, kv_len:] = np.nan
    return batch, q, k, v


def shuffled_pages(
    batch: HybridBatch, k: np.ndarray, v: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move a contiguous cache to pages in random order; returns block table and both caches."""
    pages = -(-k.shape[1] // PAGE_SIZE)
    table = np.random.default_rng(seed).permutation(batch.num_requests * pages + 3)
    table = table[: batch.num_requests * pages].reshape(-1, pages).astype(np.int32)
    paged = np.full((2, table.size + 3, PAGE_SIZE, *k.shape[2:]), np.nan)
    for i, kv_len in enumerate(batch.kv_lens):
        for j in range(kv_len):
            at = table[i, j // PAGE_SIZE], j % PAGE_SIZE
            paged[0][at], paged[1][at] = k[i, j], v[i, j]
    return table, paged[0], paged[1]


MIXED = ([3, 1, 0, 5, 6, 1, 0, 2], [7, 9, 4, 5, 2, 1, 0, 0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("group", "kv_heads"), [(1, 3), (4, 1), (3, 2)], ids=["mha", "mqa", "gqa"])
def test_agrees_with_single_numbers(group: int, kv_heads: int, causal: bool) -> None:
    batch, q, k, v = case(*MIXED, group, kv_heads)
    out, lse = reference_attention(q, k, v, batch, causal=causal)
    expected_out, expected_lse = naive(q, k, v, batch, causal=causal)
    np.testing.assert_allclose(out, expected_out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-13)
    assert out.dtype == lse.dtype == np.float64


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("cap", [None, 0.7, 30.0])
@pytest.mark.parametrize("window", [None, 0, 1, 4, 100])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_windows_caps_and_sinks_agree_with_single_numbers(
    window: int | None, cap: float | None, has_sinks: bool, causal: bool
) -> None:
    batch, q, k, v = case(*MIXED, 2, 2)
    if window is not None:  # not a key before all windows is read
        for i, (q_len, kv_len) in enumerate(zip(batch.q_lens, batch.kv_lens, strict=True)):
            k[i, : max(0, kv_len - q_len - window)] = np.nan
            v[i, : max(0, kv_len - q_len - window)] = np.nan
    sinks = np.array([0.3, -2.0, 5.0, -np.inf]) if has_sinks else None
    options = {"causal": causal, "window_left": window, "logits_soft_cap": cap, "sinks": sinks}
    out, lse = reference_attention(q, k, v, batch, **options)
    expected_out, expected_lse = naive(q, k, v, batch, **options)
    np.testing.assert_allclose(out, expected_out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-13)


def test_pages_before_all_windows_are_not_looked_up() -> None:
    batch, q, k, v = case([2, 1], [17, 9])
    table, paged_k, paged_v = shuffled_pages(batch, k, v)
    paged = HybridBatch.from_block_table(
        *lengths([2, 1], [17, 9]), shape=table.shape, row_stride=table.shape[1], page_size=PAGE_SIZE
    )
    expected = reference_attention(q, k, v, batch, window_left=3)
    table[0, :3] = table[1, :1] = 10_000
    pages = {"page_table": flat_page_table(table), "page_size": PAGE_SIZE}
    got = reference_attention(q, paged_k, paged_v, paged, window_left=3, **pages)
    np.testing.assert_array_equal(got[0], expected[0])


def test_a_large_sink_takes_all_and_one_of_minus_infinity_nothing() -> None:
    batch, q, k, v = case([2], [5])
    without, lse = reference_attention(q, k, v, batch)
    for sink, share in ((1e4, 0.0), (np.inf, 0.0), (-np.inf, 1.0), (-1e4, 1.0)):
        out, same = reference_attention(q, k, v, batch, sinks=np.full(4, sink))
        np.testing.assert_array_equal(out, share * without)
        np.testing.assert_array_equal(same, lse)


def test_sinks_are_one_for_each_query_head() -> None:
    batch, q, k, v = case([2], [5])
    with pytest.raises(ValueError, match=r"sinks has shape \(2,\); expected \(4,\)"):
        reference_attention(q, k, v, batch, sinks=np.zeros(2))


def test_sm_scale_replaces_the_default() -> None:
    batch, q, k, v = case([2], [5])
    got = reference_attention(q, k, v, batch, sm_scale=-0.7)
    np.testing.assert_allclose(got[0], naive(q, k, v, batch, sm_scale=-0.7)[0], atol=1e-13)
    np.testing.assert_allclose(
        reference_attention(q, k, v, batch, sm_scale=HEAD_DIM**-0.5)[1],
        reference_attention(q, k, v, batch)[1],
    )


def test_zero_scores_average_the_visible_values() -> None:
    batch, q, k, v = case([3], [5])
    out, lse = reference_attention(np.zeros_like(q), k, v, batch)
    for token, seen in enumerate((3, 4, 5)):
        np.testing.assert_allclose(out[token, 0], v[0, :seen, 0].mean(axis=0))
        np.testing.assert_allclose(lse[token], math.log(seen))


def test_rows_without_keys_are_zero_and_minus_infinity() -> None:
    batch, q, k, v = case([4, 2], [2, 0])
    out, lse = reference_attention(q, k, v, batch)
    unseen = [0, 1, 4, 5]
    assert not out[unseen].any()
    assert np.isneginf(lse[unseen]).all()
    assert np.isfinite(lse[[2, 3]]).all()


def test_huge_scores_stay_finite() -> None:
    batch, q, k, v = case([1], [6])
    out, lse = reference_attention(q * 1e4, k, v, batch)
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()


def test_query_rows_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, q, k, v = case([9, 3], [12, 3])
    whole = reference_attention(q, k, v, batch)
    monkeypatch.setattr(attention, "_SCORE_BYTES", 8 * 2 * 12 * 2)  # two tokens at a time
    chunked = reference_attention(q, k, v, batch)
    np.testing.assert_allclose(chunked[0], whole[0], atol=1e-14)
    np.testing.assert_allclose(chunked[1], whole[1], atol=1e-14)


def test_memory_stays_bounded() -> None:
    batch = HybridBatch.contiguous(*lengths([512], [8192]))
    q = np.zeros((512, 32, HEAD_DIM), np.float16)
    cache = np.zeros((1, 8192, 2, HEAD_DIM), np.float16)
    tracemalloc.start()
    try:
        reference_attention(q, cache, cache, batch)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 512 << 20


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_narrow_inputs_are_computed_in_float64(dtype: Any) -> None:
    batch, q, k, v = case(*MIXED)
    narrow = [x.astype(dtype) for x in (q, k, v)]
    out, lse = reference_attention(*narrow, batch)
    wide_out, wide_lse = reference_attention(*(x.astype(np.float64) for x in narrow), batch)
    np.testing.assert_array_equal(out, wide_out)
    np.testing.assert_array_equal(lse, wide_lse)


def test_block_table_agrees_with_contiguous() -> None:
    contiguous, q, k, v = case(*MIXED)
    table, k_pages, v_pages = shuffled_pages(contiguous, k, v)
    wide = np.full((table.shape[0], table.shape[1] + 2), 10**6, np.int32)
    wide[:, : table.shape[1]] = table
    strided = wide[:, : table.shape[1]]
    batch = HybridBatch.from_block_table(
        contiguous.qo_indptr,
        contiguous.kv_lens,
        shape=strided.shape,
        row_stride=wide.shape[1],
        page_size=PAGE_SIZE,
    )
    got = reference_attention(
        q, k_pages, v_pages, batch, page_table=flat_page_table(strided), page_size=PAGE_SIZE
    )
    expected = reference_attention(q, k, v, contiguous)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_kv_indices_agree_with_contiguous() -> None:
    contiguous, q, k, v = case(*MIXED)
    table, k_pages, v_pages = shuffled_pages(contiguous, k, v)
    used = -(-contiguous.kv_lens // PAGE_SIZE)
    indices = np.concatenate([row[:n] for row, n in zip(table, used, strict=True)])
    batch = HybridBatch.from_kv_indptr(
        contiguous.qo_indptr,
        contiguous.kv_lens,
        kv_indptr=np.cumsum([0, *used]).astype(np.int32),
        num_kv_indices=len(indices),
        page_size=PAGE_SIZE,
    )
    got = reference_attention(q, k_pages, v_pages, batch, page_table=indices, page_size=PAGE_SIZE)
    np.testing.assert_array_equal(got[0], reference_attention(q, k, v, contiguous)[0])


def test_empty_batch() -> None:
    batch, q, k, v = case([], [])
    out, lse = reference_attention(q, k, v, batch)
    assert out.shape == (0, 4, HEAD_DIM)
    assert lse.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((4, 4, HEAD_DIM))}, "q has shape"),
        ({"q": np.zeros((3, 3, HEAD_DIM))}, "q has 3 heads"),
        ({"v_cache": np.zeros((1, 9, 2, HEAD_DIM))}, "v_cache has shape"),
        ({"k_cache": np.zeros((1, 4, 2, HEAD_DIM))}, "k_cache has 1 rows of 4 tokens"),
        ({"page_size": 16}, "page_table and page_size=16 must be given together"),
        ({"page_size": 16, "page_table": np.zeros(1, np.int32)}, "made for None"),
    ],
)
def test_arguments_that_disagree(change: dict[str, Any], message: str) -> None:
    batch, q, k, v = case([3], [5])
    arguments = {"q": q, "k_cache": k, "v_cache": v, "batch": batch} | change
    with pytest.raises(ValueError, match=message):
        reference_attention(**arguments)


def test_flat_page_table_is_a_view_of_strided_rows() -> None:
    wide = np.arange(12, dtype=np.int32).reshape(3, 4)
    flat = flat_page_table(wide[:, :3])
    assert flat.tolist() == list(range(11))
    assert np.shares_memory(flat, wide)
    assert flat_page_table(np.zeros((0, 4), np.int32)).shape == (0,)
    assert flat_page_table(np.broadcast_to(wide[:1], (5, 4))).tolist() == [0, 1, 2, 3]


def test_flat_page_table_refuses_other_layouts() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        flat_page_table(np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="ascontiguousarray"):
        flat_page_table(np.zeros((4, 3), np.int32).T)
    with pytest.raises(ValueError, match="in reverse"):
        flat_page_table(np.zeros((4, 3), np.int32)[::-1])


@pytest.mark.parametrize("value_dim", [3, HEAD_DIM + 4])
def test_values_of_another_width_than_keys(value_dim: int) -> None:
    batch, q, k, v = case([1, 5, 0, 3], [9, 7, 4, 2])
    v = np.concatenate((v, -2 * v), axis=3)[..., :value_dim]
    sinks = np.linspace(-1, 1, q.shape[1])
    out, lse = reference_attention(q, k, v, batch, sinks=sinks)
    expected, expected_lse = naive(q, k, v, batch, sinks=sinks)
    assert out.shape == (*q.shape[:2], value_dim)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-12)


def test_caches_differ_in_the_width_of_heads_alone() -> None:
    batch, q, k, v = case([1, 2], [3, 4])
    with pytest.raises(ValueError, match=r"v_cache has shape .* as k_cache, but for the elements"):
        reference_attention(q, k, v[:, :-1], batch)
