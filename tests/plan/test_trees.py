"""Plans of layers with a tree mask, and what the reference and the executor make of its words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_support import tiling_of
from spec_support import spec_of
from tree_support import packed, random_tree, random_words

from podrt.kernels.families import Variant
from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import RequestCuts, make_plan
from podrt.reference import check_plan, coverage, execute_plan, reference_attention
from podrt.reference.coverage import expected_coverage
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import MOST_TREE_TOKENS, Mask

HEAD_DIM = 8
VARIANTS = [
    hopper_variant("pod", "bfloat16", 128, decode_rows=8, page_size=16),
    hopper_variant("pod", "bfloat16", 128, decode_rows=32),
    variant("pod", "sm_90a", "bfloat16", 128, page_size=16),
]

q_lens = st.one_of(st.sampled_from([0, 1, 2, 7, 8, 9, 63, 64, 65]), st.integers(0, 90))
kv_lens = st.one_of(st.sampled_from([0, 1, 16, 63, 64, 65, 129]), st.integers(0, 700))
requests = st.lists(st.tuples(q_lens, kv_lens), max_size=4)
windows = st.one_of(st.none(), st.sampled_from([0, 1, 15, 63, 64, 100]), st.integers(0, 800))


def batch_of(lengths: list[tuple[int, int]]) -> HybridBatch:
    qo_indptr = np.cumsum([0, *(q_len for q_len, _ in lengths)]).astype(np.int32)
    return HybridBatch.contiguous(qo_indptr, np.array([n for _, n in lengths], np.int32))


def tensors(rng: np.random.Generator, batch: HybridBatch, heads: int, group: int) -> Any:
    q = rng.standard_normal((batch.total_tokens, heads * group, HEAD_DIM))
    kv = rng.standard_normal((2, batch.num_requests, batch.max_kv_len, heads, HEAD_DIM))
    return q, kv[0], kv[1]


@settings(deadline=None, max_examples=120)
@given(
    lengths=requests,
    config=st.sampled_from(VARIANTS),
    group=st.sampled_from([1, 4, 5, 8, 71]),
    window=windows,
    cap=st.sampled_from([None, 2.0]),
    has_sinks=st.booleans(),
    is_deterministic=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_walking_a_plan_gives_the_reference(
    lengths: list[tuple[int, int]],
    config: Variant,
    group: int,
    window: int | None,
    cap: float | None,
    has_sinks: bool,
    is_deterministic: bool,
    seed: int,
) -> None:
    rng, batch = np.random.default_rng(seed), batch_of(lengths)
    spec = spec_of(2, group, window_left=window, logits_soft_cap=cap, tree_mask=True)
    tiling = tiling_of(config, 3, group)
    if is_deterministic:
        tiling = replace(tiling, request_cuts=RequestCuts())
    plan = make_plan(batch, tiling, spec)
    check_plan(plan, batch)
    inputs = tensors(rng, batch, 2, group)
    given = {
        "sinks": rng.standard_normal(2 * group) if has_sinks else None,
        "tree_mask": random_words(rng, batch.q_lens.tolist()),
    }
    out, lse = execute_plan(plan, *inputs, **given, order=seed)
    expected = reference_attention(*inputs, batch, window_left=window, logits_soft_cap=cap, **given)
    np.testing.assert_allclose(out, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(lse, expected[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("group", [1, 4, 8, 20])
def test_requests_that_may_have_a_tree_are_decodes(config: Variant, group: int) -> None:
    lengths = [(n, 300) for n in (1, 8, 9, 63, MOST_TREE_TOKENS, MOST_TREE_TOKENS + 1, 200)]
    batch = batch_of(lengths)
    plan = make_plan(batch, tiling_of(config, 7, group), spec_of(2, group, tree_mask=True))
    assert {*plan.decode["request"].tolist()} == {0, 1, 2, 3, 4}
    assert {*plan.prefill["request"].tolist()} == {5, 6}
    # All new keys may be seen by any row of a decode; prefills are causal.
    last = plan.decode["split"] == plan.decode["num_splits"] - 1
    assert (plan.decode["kv_end"][last] == 300).all()
    assert all(
        np.array_equal(got, want)
        for got, want in zip(coverage(plan, batch), expected_coverage(plan, batch), strict=True)
    )


@settings(deadline=None, max_examples=100)
@given(
    q_len=st.integers(1, 64), kv_len=st.integers(0, 200), window=windows, seed=st.integers(0, 999)
)
def test_a_token_sees_what_its_word_says(
    q_len: int, kv_len: int, window: int | None, seed: int
) -> None:
    """Said again, key by key."""
    rng, mask = np.random.default_rng(seed), Mask(True, window, tree=True)
    words = random_words(rng, [q_len])
    sees = mask.sees(np.arange(q_len), np.arange(kv_len), q_len, kv_len, words)
    begin, end = mask.key_range(np.arange(q_len), q_len, kv_len)
    for token in range(q_len):
        word = int(words[token])
        for key in range(kv_len):
            new = key - (kv_len - q_len)
            near = window is None or new >= token - window
            of_tree = word >> new & 1 == 1 if new >= 0 else near
            assert sees[token, key] == (of_tree if word else near and new <= token)
            assert begin[token] <= key < end[token] or not sees[token, key]


def test_a_chain_is_a_causal_mask() -> None:
    rng, batch = np.random.default_rng(0), batch_of([(64, 100), (5, 5), (100, 130), (9, 4)])
    inputs = tensors(rng, batch, 2, 2)
    causal = reference_attention(*inputs, batch)
    zeros = np.zeros(batch.total_tokens, np.uint64)
    chains = zeros.copy()
    chains[:64], chains[64:69] = packed(np.tri(64, dtype=bool)), packed(np.tri(5, dtype=bool))
    for words in (zeros, chains):
        out, lse = reference_attention(*inputs, batch, tree_mask=words)
        np.testing.assert_array_equal(out, causal[0])
        np.testing.assert_array_equal(lse, causal[1])


@pytest.mark.parametrize("window", [0, 1, 7, 62, 63, 64])
@pytest.mark.parametrize("words", ["zeros", "none"])
def test_tokens_without_a_word_are_as_in_a_layer_without_trees(window: int, words: str) -> None:
    """Whatever their window: no tree lifts it."""
    rng, batch = np.random.default_rng(0), batch_of([(64, 100), (5, 5), (33, 130), (9, 4), (1, 70)])
    inputs = tensors(rng, batch, 2, 2)
    plain = reference_attention(*inputs, batch, window_left=window)
    plan = make_plan(
        batch, tiling_of(VARIANTS[0], 3, 2), spec_of(2, 2, window_left=window, tree_mask=True)
    )
    given = np.zeros(batch.total_tokens, np.uint64) if words == "zeros" else None
    results = [execute_plan(plan, *inputs, tree_mask=given)]
    if given is not None:
        results.append(reference_attention(*inputs, batch, window_left=window, tree_mask=given))
    for got in results:
        for ours, expected in zip(got, plain, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_each_path_of_a_tree_is_a_request_of_its_own() -> None:
    rng = np.random.default_rng(1)
    tree = random_tree(rng, 30)
    batch = batch_of([(30, 80)])
    q, k, v = tensors(rng, batch, 1, 2)
    out, _ = reference_attention(q, k, v, batch, tree_mask=packed(tree))
    for token in range(30):
        keys = [*range(50), *(50 + tree[token].nonzero()[0])]
        path = batch_of([(1, len(keys))])
        alone, _ = reference_attention(q[token][None], k[:, keys], v[:, keys], path)
        np.testing.assert_allclose(out[token], alone[0], rtol=0, atol=1e-12)


def test_rows_that_words_let_see_nothing_are_zero() -> None:
    batch = batch_of([(3, 3)])
    words = np.array([1 << 5, 1, 0], np.uint64)  # there is no new key of that number
    out, lse = reference_attention(
        *tensors(np.random.default_rng(2), batch, 1, 1), batch, tree_mask=words
    )
    assert (out[0] == 0).all()
    assert np.isneginf(lse[0]).all()
    assert np.isfinite(lse[1:]).all()
