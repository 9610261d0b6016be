"""`HostAttention` plans and runs as `HybridAttention` does, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from attention_support import KV_LENS, PAGE_SIZE, QO_INDPTR, Batch
from fake_gpu import TorchTensor
from tree_support import random_words

import podrt

BATCH = Batch()
LAYER = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64, "dtype": "float16"}


def planned(**options):
    attention = podrt.HostAttention(**LAYER, page_size=PAGE_SIZE, **options)
    attention.plan(QO_INDPTR, KV_LENS, block_table=BATCH.block_table)
    return attention


@pytest.mark.parametrize("causal", [True, False])
def test_a_plan_serves_every_layer(causal):
    attention = planned(causal=causal)
    for scale in (1, 2):
        v = (BATCH.v_pages * scale).astype(np.float16)
        out, lse = attention.run(BATCH.q, BATCH.k_pages, v, return_lse=True)
        exact, exact_lse = BATCH.expected(causal=causal)
        np.testing.assert_allclose(out.astype(float), exact * scale, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(lse, exact_lse, rtol=1e-6)


def test_sinks_may_be_given_to_every_run():
    attention = planned(window_left=9, logits_soft_cap=30.0)
    options = {"window_left": 9, "logits_soft_cap": 30.0}
    for sinks in (None, np.zeros(8, np.float32), np.full(8, 2, np.float32)):
        out = attention.run(BATCH.q, BATCH.k_pages, BATCH.v_pages, sinks=sinks)
        exact, _ = BATCH.expected(**options, sinks=sinks)
        np.testing.assert_allclose(out.astype(float), exact, rtol=2e-3, atol=1e-4)


def test_tree_masks_are_of_each_plan():
    attention = podrt.HostAttention(**LAYER, page_size=PAGE_SIZE, tree_mask=True)
    words = random_words(np.random.default_rng(0), np.diff(QO_INDPTR).tolist())
    for mask in (words, words.view(np.int64), words.tolist(), None):
        attention.plan(QO_INDPTR, KV_LENS, block_table=BATCH.block_table, tree_mask=mask)
        out = attention.run(BATCH.q, BATCH.k_pages, BATCH.v_pages)
        expected, _ = BATCH.expected(tree_mask=None if mask is None else words)
        np.testing.assert_allclose(out.astype(float), expected, rtol=2e-3, atol=1e-4)
    alone = podrt.hybrid_attention(
        BATCH.q, BATCH.k, BATCH.v, QO_INDPTR, KV_LENS, tree_mask=words, backend="reference"
    )
    expected, _ = BATCH.expected(tree_mask=words)
    np.testing.assert_allclose(alone.astype(float), expected, rtol=2e-3, atol=1e-4)
    with pytest.raises(ValueError, match="tree_mask: lies on cuda:0, expected host memory"):
        on_gpu = TorchTensor((30,), 1 << 20, "torch.int64")
        attention.plan(QO_INDPTR, KV_LENS, block_table=BATCH.block_table, tree_mask=on_gpu)


def test_contiguous_caches_and_page_lists():
    contiguous = podrt.HostAttention(**LAYER)
    contiguous.plan(QO_INDPTR, KV_LENS)
    ragged = podrt.HostAttention(**LAYER, page_size=PAGE_SIZE)
    ragged.plan(QO_INDPTR, KV_LENS, **BATCH.ragged_pages)
    out = contiguous.run(BATCH.q, BATCH.k, BATCH.v)
    np.testing.assert_array_equal(out, ragged.run(BATCH.q, BATCH.k_pages, BATCH.v_pages))
    np.testing.assert_allclose(out.astype(float), BATCH.expected()[0], rtol=2e-3, atol=1e-4)


def test_values_may_be_narrower_than_keys():
    """Attention of such values is that of the others, cut off."""
    values = BATCH.v_pages[..., :40]
    narrow = podrt.HostAttention(**LAYER, v_head_dim=40, page_size=PAGE_SIZE)
    narrow.plan(QO_INDPTR, KV_LENS, block_table=BATCH.block_table)
    out = narrow.run(BATCH.q, BATCH.k_pages, values)
    whole = planned().run(BATCH.q, BATCH.k_pages, BATCH.v_pages)
    np.testing.assert_array_equal(out, whole[..., :40])
    tables = {"block_table": BATCH.block_table, "backend": "reference"}
    alone = podrt.hybrid_attention(BATCH.q, BATCH.k_pages, values, QO_INDPTR, KV_LENS, **tables)
    np.testing.assert_array_equal(alone, out)


def test_outputs_are_written_where_the_caller_wants_them():
    attention, out = planned(), np.full_like(BATCH.q, np.nan)
    lse = np.full(BATCH.q.shape[:2], np.nan, np.float32)
    assert attention.run(BATCH.q, BATCH.k_pages, BATCH.v_pages, out=out, lse=lse) is out
    np.testing.assert_array_equal(out, attention.run(BATCH.q, BATCH.k_pages, BATCH.v_pages))
    np.testing.assert_allclose(lse, BATCH.expected()[1], rtol=1e-6)


def test_arguments_of_plan_may_change_once_it_returns():
    attention = podrt.HostAttention(**LAYER, page_size=PAGE_SIZE)
    arguments = QO_INDPTR.copy(), BATCH.kv_lens.copy(), BATCH.block_table.copy()
    attention.plan(*arguments[:2], block_table=arguments[2])
    for array in arguments:
        array[:] = 0
    out = attention.run(BATCH.q, BATCH.k_pages, BATCH.v_pages)
    np.testing.assert_array_equal(out, planned().run(BATCH.q, BATCH.k_pages, BATCH.v_pages))


def test_run_needs_a_plan():
    attention = podrt.HostAttention(**LAYER)
    with pytest.raises(RuntimeError, match=r"call plan\(\) first"):
        attention.run(BATCH.q, BATCH.k, BATCH.v)


def test_a_bad_plan_leaves_the_one_before():
    attention = planned()
    with pytest.raises(ValueError, match="qo_indptr"):
        attention.plan([0, 1], KV_LENS, block_table=BATCH.block_table)
    out = attention.run(BATCH.q, BATCH.k_pages, BATCH.v_pages)
    np.testing.assert_allclose(out.astype(float), BATCH.expected()[0], rtol=2e-3, atol=1e-4)


def test_tensors_that_do_not_fit_are_refused_before_anything_is_written():
    attention, out = planned(), np.full_like(BATCH.q, 7)
    with pytest.raises(ValueError, match="q: got shape"):
        attention.run(BATCH.q[1:], BATCH.k_pages, BATCH.v_pages)
    with pytest.raises(ValueError, match=r"page .* of request .* expected"):
        attention.run(BATCH.q, BATCH.k_pages[:3], BATCH.v_pages[:3], out=out)
    assert (out == 7).all()


def test_tensors_on_a_gpu_are_refused():
    attention = podrt.HostAttention(**LAYER)
    attention.plan([0, 1], [4])
    q, cache = TorchTensor((1, 8, 64), 1 << 20), TorchTensor((1, 4, 2, 64), 1 << 21)
    with pytest.raises(ValueError, match="q: lies on cuda:0, expected host memory"):
        attention.run(q, cache, cache, out=TorchTensor((1, 8, 64), 1 << 22))
    paged = podrt.HostAttention(**LAYER, page_size=PAGE_SIZE)
    table = TorchTensor((1, 1), 1 << 20, "torch.int32")
    with pytest.raises(ValueError, match="block_table: lies on cuda:0, expected host memory"):
        paged.plan([0, 1], [4], block_table=table)


def test_arguments_of_the_layer_are_checked():
    with pytest.raises(podrt.UnsupportedConfigError, match="head_dim=100"):
        podrt.HostAttention(8, 2, 100)
    with pytest.raises(ValueError, match="num_qo_heads=8"):
        podrt.HostAttention(8, 3, 64)
