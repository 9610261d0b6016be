"""Plans of batches whose requests share prefixes: keys once, each row joined from both parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_support import tiling_of
from spec_support import spec_of

from podrt.kernels.families import Variant
from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import PrefixLimits, RequestCuts, make_plan, plan_bounds
from podrt.reference import check_plan, coverage, execute_plan, reference_attention
from podrt.reference.coverage import expected_coverage
from podrt.spec.batch import HybridBatch
from podrt.spec.prefixes import checked_prefixes, sharing

HEAD_DIM, PAGE = 8, 16
VARIANTS = [
    hopper_variant("pod", "bfloat16", 128, decode_rows=8, page_size=16),
    hopper_variant("pod", "bfloat16", 128, decode_rows=32, page_size=16),
    variant("pod", "sm_90a", "bfloat16", 128, page_size=16),
]

q_lens = st.one_of(st.sampled_from([0, 1, 1, 1, 2, 9, 40]), st.integers(0, 90))
#: Keys of their own, and the pages of the prefix, of groups of requests.
members = st.lists(st.tuples(q_lens, st.integers(0, 500)), min_size=1, max_size=5)
groups = st.lists(st.tuples(st.sampled_from([0, 1, 3, 12, 40]), members), min_size=1, max_size=4)


def sharing_batch(
    groups: list[tuple[int, list[tuple[int, int]]]],
) -> tuple[HybridBatch, np.ndarray, list[tuple[int, int, int]]]:
    """Return a batch, its page table, and the prefixes of groups of (pages, [(q_len, further)])."""
    lengths, prefixes = [], []
    for pages, requests in groups:
        begin = len(lengths)
        lengths += [(q, pages * PAGE + q + further) for q, further in requests]
        prefixes.append((begin, len(lengths), pages * PAGE))
    width = max(-(-kv_len // PAGE) for _, kv_len in lengths) + 1
    table = np.arange(len(lengths) * width, dtype=np.int32).reshape(-1, width)
    for begin, end, keys in prefixes:
        table[begin:end, : keys // PAGE] = table[begin, : keys // PAGE]
    batch = HybridBatch.from_block_table(
        np.cumsum([0, *(q for q, _ in lengths)]).astype(np.int32),
        np.array([kv_len for _, kv_len in lengths], np.int32),
        shape=table.shape,
        row_stride=width,
        page_size=PAGE,
    )
    return batch, table, prefixes


@settings(deadline=None, max_examples=150)
@given(
    groups=groups,
    config=st.sampled_from(VARIANTS),
    group=st.sampled_from([1, 4, 5, 8, 71]),
    heads=st.sampled_from([1, 2]),
    cap=st.sampled_from([None, 2.0]),
    has_sinks=st.booleans(),
    is_deterministic=st.booleans(),
    num_sms=st.sampled_from([1, 3, 132]),
    seed=st.integers(0, 2**16),
)
def test_walking_a_plan_gives_the_reference(
    groups: list[tuple[int, list[tuple[int, int]]]],
    config: Variant,
    group: int,
    heads: int,
    cap: float | None,
    has_sinks: bool,
    is_deterministic: bool,
    num_sms: int,
    seed: int,
) -> None:
    batch, table, given_prefixes = sharing_batch(groups)
    rng = np.random.default_rng(seed)
    spec = spec_of(heads, group, logits_soft_cap=cap, page_size=PAGE)
    tiling = tiling_of(config, num_sms, group)
    if is_deterministic:
        tiling = replace(tiling, request_cuts=RequestCuts())
    shared = sharing(batch, checked_prefixes(batch, given_prefixes))
    plan = make_plan(shared, tiling, spec)
    check_plan(plan, shared)
    q = rng.standard_normal((batch.total_tokens, heads * group, HEAD_DIM))
    k, v = rng.standard_normal((2, table.size, PAGE, heads, HEAD_DIM))
    given = {
        "page_table": table.reshape(-1),
        "page_size": PAGE,
        "sinks": rng.standard_normal(heads * group) if has_sinks else None,
    }
    got = execute_plan(plan, q, k, v, **given, order=seed)
    expected = reference_attention(q, k, v, batch, **given, logits_soft_cap=cap)
    for ours, exact in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", VARIANTS)
def test_keys_that_are_shared_are_planned_once(config: Variant) -> None:
    batch, _, prefixes = sharing_batch([(0, [(3, 5)]), (64, [(1, 20 + n) for n in range(30)])])
    spec = spec_of(2, 4, page_size=16)
    shared = sharing(batch, checked_prefixes(batch, prefixes))
    plan = make_plan(shared, tiling_of(config, 7, 4), spec)
    assert shared.kv_lens.tolist() == [8, *range(21, 51), 1024]
    assert shared.q_lens.tolist() == [3, *[1] * 30, 30]
    assert all(
        np.array_equal(got, want)
        for got, want in zip(coverage(plan, shared), expected_coverage(plan, shared), strict=True)
    )
    keys = plan.prefill_keys + plan.decode_keys
    tiles = -(-30 * 4 // plan.prefill_rows)
    assert keys == 8 + sum(range(21, 51)) + tiles * 1024
    assert plan.joins is not None and len(plan.joins.tokens) == 30
    # The request without a prefix is merged by its own items.
    of_first = plan.decode[plan.decode["request"] == 0]
    if config.family == "hopper" and plan.decode_rows < 12:
        of_first = plan.prefill[plan.prefill["request"] == 0]
    assert (of_first["num_splits"] == 1).all()


@settings(deadline=None, max_examples=150)
@given(
    groups=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 12, 200]),
            st.lists(
                st.tuples(st.sampled_from([1, 1, 1, 3]), st.integers(0, 2000)),
                min_size=1,
                max_size=12,
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    chunk=st.integers(0, 600),
    config=st.sampled_from(VARIANTS),
    group=st.sampled_from([1, 4, 8, 71]),
    num_sms=st.sampled_from([3, 132]),
)
def test_plans_are_within_the_bounds(
    groups: list[tuple[int, list[tuple[int, int]]]],
    chunk: int,
    config: Variant,
    group: int,
    num_sms: int,
) -> None:
    batch, _, prefixes = sharing_batch([*groups, (0, [(chunk, 3000)])])
    tiling, spec = tiling_of(config, num_sms, group), spec_of(2, group, page_size=16)
    shared = sharing(batch, checked_prefixes(batch, prefixes))
    plan = make_plan(shared, tiling, spec)
    decodes = batch.num_requests - 1
    bounds = plan_bounds(
        tiling,
        num_kv_heads=2,
        group=group,
        max_requests=batch.num_requests,
        max_tokens=batch.total_tokens,
        max_kv_len=batch.max_kv_len,
        prefixes=PrefixLimits(len(groups), 3 * decodes, 3),
    )
    assert len(plan.prefill) + len(plan.decode) <= bounds.items
    assert plan.partial_rows <= bounds.partial_rows
    assert plan.num_merges <= bounds.merges


def test_a_batch_without_prefixes_stays_what_it_is() -> None:
    batch, _, _ = sharing_batch([(3, [(1, 5)])])
    assert sharing(batch, checked_prefixes(batch, [(0, 1, 48)])) is batch
