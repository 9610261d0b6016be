"""Plans of layers with a window: what it hides is neither planned nor priced."""

from __future__ import annotations

import math
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
from podrt.plan import KeySharing, Plan, keys_of, make_plan
from podrt.plan.order import NO_RUNS
from podrt.plan.tiles import window_step
from podrt.reference import check_plan, execute_plan, reference_attention
from podrt.spec.batch import HybridBatch

HEAD_DIM = 8
HOPPER = hopper_variant("pod", "bfloat16", 128, decode_rows=8, page_size=16)
PORTABLE = variant("pod", "sm_90a", "bfloat16", 128, page_size=16)
VARIANTS = [HOPPER, PORTABLE, hopper_variant("pod", "bfloat16", 128, decode_rows=32)]
PAGE_SIZES = (None, 1, 5, 16, 48, 64, 128)
#: At, before and after ends of tiles and pages, and longer than any request.
WINDOWS = (0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 500, 4096)


def batch_of(lengths: list[tuple[int, int]], page_size: int | None = None) -> HybridBatch:
    qo_indptr = np.cumsum([0, *(q_len for q_len, _ in lengths)]).astype(np.int32)
    kv_lens = np.array([kv_len for _, kv_len in lengths], np.int32)
    if page_size is None:
        return HybridBatch.contiguous(qo_indptr, kv_lens)
    most = -(-int(kv_lens.max(initial=0)) // page_size)
    shape = (len(lengths), most)
    return HybridBatch.from_block_table(
        qo_indptr, kv_lens, shape=shape, row_stride=most, page_size=page_size
    )


q_lens = st.one_of(st.sampled_from([0, 1, 1, 2, 7, 8, 9]), st.integers(0, 300))
kv_lens = st.one_of(st.sampled_from([0, 1, 16, 129]), st.integers(0, 3000))
requests = st.lists(st.tuples(q_lens, kv_lens), max_size=5)
windows = st.one_of(st.sampled_from(WINDOWS), st.integers(0, 3000))


@settings(deadline=None, max_examples=150)
@given(
    lengths=requests,
    config=st.sampled_from(VARIANTS),
    num_sms=st.sampled_from([1, 7]),
    heads=st.integers(1, 4),
    group=st.sampled_from([1, 3, 4, 7, 16, 71]),
    window=windows,
    causal=st.booleans(),
    page_size=st.sampled_from(PAGE_SIZES),
)
def test_any_batch_is_covered_and_no_page_before_a_window_is_read(
    lengths: list[tuple[int, int]],
    config: Variant,
    num_sms: int,
    heads: int,
    group: int,
    window: int,
    causal: bool,
    page_size: int | None,
) -> None:
    spec = spec_of(heads, group, causal, window_left=window, page_size=page_size)
    tiling, batch = tiling_of(config, num_sms, group), batch_of(lengths, page_size)
    plan = make_plan(batch, tiling, spec)
    check_plan(plan, batch)
    assert plan.prefill_keys == keys_of(plan.prefill).sum()
    assert plan.decode_keys == keys_of(plan.decode).sum()
    for items, kv_tile in (
        (plan.prefill, tiling.prefill_kv_tile),
        (plan.decode, tiling.decode_kv_tile),
    ):
        whole = math.gcd(window_step(page_size), kv_tile)
        assert (items["kv_begin"] % whole == 0).all()


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(
        st.tuples(st.sampled_from([1, 1, 2, 5, 40, 70]), st.integers(0, 1300)),
        min_size=1,
        max_size=4,
    ),
    config=st.sampled_from(VARIANTS),
    group=st.sampled_from([1, 4, 7]),
    window=st.one_of(st.none(), windows),
    cap=st.sampled_from([None, 0.5, 30.0]),
    has_sinks=st.booleans(),
    causal=st.booleans(),
    page_size=st.sampled_from([None, 16, 5]),
    seed=st.integers(0, 2**16),
)
def test_walking_a_plan_gives_the_reference(
    lengths: list[tuple[int, int]],
    config: Variant,
    group: int,
    window: int | None,
    cap: float | None,
    has_sinks: bool,
    causal: bool,
    page_size: int | None,
    seed: int,
) -> None:
    rng, heads = np.random.default_rng(seed), 2
    batch = batch_of(lengths, page_size)
    spec = spec_of(
        heads, group, causal, window_left=window, logits_soft_cap=cap, page_size=page_size
    )
    plan = make_plan(batch, tiling_of(config, 3, group), spec)
    check_plan(plan, batch)
    q = rng.standard_normal((batch.total_tokens, heads * group, HEAD_DIM))
    k, v, table = caches(batch, spec.mask.window_left, heads, rng)
    sinks = rng.standard_normal(heads * group) * 3 if has_sinks else None
    where = {"page_table": table, "page_size": page_size, "sinks": sinks, "sm_scale": 0.4}
    out, lse = execute_plan(plan, q, k, v, **where, order=seed)
    expected = reference_attention(
        q, k, v, batch, causal=causal, window_left=window, logits_soft_cap=cap, **where
    )
    np.testing.assert_allclose(out, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(lse, expected[1], rtol=0, atol=1e-9)


def caches(
    batch: HybridBatch, window: int | None, heads: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Keys, values and page table; NaN where no key is and before the step of a first one."""
    rows, page_size = batch.num_requests, batch.page_size
    step, length = window_step(page_size), batch.max_kv_len
    if page_size is not None:
        length = -(-length // page_size) * page_size
    k, v = rng.standard_normal((2, rows, length, heads, HEAD_DIM))
    for i, (q_len, kv_len) in enumerate(zip(batch.q_lens, batch.kv_lens, strict=True)):
        first = 0 if window is None else max(0, int(kv_len) - int(q_len) - window)
        for cache in (k, v):
            cache[i, : first // step * step] = cache[i, kv_len:] = np.nan
    if page_size is None:
        return k, v, None
    table = rng.permutation(rows * (length // page_size)).astype(np.int32)
    k, v = (cache.reshape(-1, page_size, heads, HEAD_DIM) for cache in (k, v))
    paged = np.empty((2, *k.shape))
    paged[0][table], paged[1][table] = k, v
    return paged[0], paged[1], table


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("requests", [1, 7, 300])
def test_decodes_cost_what_the_keys_in_their_window_do(config: Variant, requests: int) -> None:
    tiling, long, short = tiling_of(config, 132, 4), 100_000, 4112
    near = make_plan(
        batch_of([(1, long)] * requests, 16), tiling, spec_of(8, 4, window_left=4096, page_size=16)
    )
    like = make_plan(batch_of([(1, short)] * requests, 16), tiling, spec_of(8, 4, page_size=16))
    shift = long - short
    assert near.decode_keys == like.decode_keys
    for field in ("request", "split", "num_splits", "partial_row", "merge"):
        assert near.decode[field].tolist() == like.decode[field].tolist()
    for field in ("kv_begin", "kv_end"):
        assert (near.decode[field] - shift).tolist() == like.decode[field].tolist()


def test_tiles_of_a_chunk_begin_where_their_own_first_token_does() -> None:
    batch, spec = batch_of([(256, 8192)], 16), spec_of(8, 4, window_left=1024, page_size=16)
    plan = make_plan(batch, tiling_of(HOPPER, 132, 4), spec)
    first_split = plan.prefill[plan.prefill["split"] == 0]
    token = first_split["row_begin"] // 4
    assert (first_split["kv_begin"] == (8192 - 256 + token - 1024) // 16 * 16).all()
    assert plan.prefill_keys == 8 * (1024 + 32)


@pytest.mark.parametrize("window", [0, 100, 5000])
def test_a_window_longer_than_all_requests_changes_nothing(window: int) -> None:
    lengths = [(1, 90), (40, 80), (3, 100), (1, 1)]
    plans = [
        make_plan(batch_of(lengths), tiling_of(PORTABLE, 7, 4), spec_of(2, 4, window_left=left))
        for left in (None, window)
    ]
    same = all(
        np.array_equal(getattr(plans[0], side), getattr(plans[1], side))
        for side in ("prefill", "decode")
    )
    assert same == (window >= 100)


def runs_of(window: int | None, kv_len: int, *, resident_bytes: int = 16 << 20) -> Plan:
    sharing = KeySharing(resident_bytes=resident_bytes, units_at_once=132)
    tiling = replace(tiling_of(HOPPER, 132, 4), key_sharing=sharing)
    spec = spec_of(8, 4, window_left=window, page_size=16)
    return make_plan(batch_of([(4096, kv_len)], 16), tiling, spec)


def test_heads_go_one_by_one_only_where_what_tiles_see_at_once_does_not_stay_in_l2() -> None:
    # 132 SMs have 17 tiles of 32 tokens of each of 8 heads: window and 544 keys of 4 KiB.
    assert runs_of(None, 65_536).prefill_runs != NO_RUNS
    assert runs_of(1024, 65_536).prefill_runs == NO_RUNS
    assert runs_of(32_768, 65_536).prefill_runs != NO_RUNS
    at_once = (1024 + 17 * 32 + 16) * 8 * 2 * 128 * 2
    assert runs_of(1024, 65_536, resident_bytes=at_once).prefill_runs == NO_RUNS
    assert runs_of(1024, 65_536, resident_bytes=at_once // 2).prefill_runs != NO_RUNS


@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(6))
def test_a_window_that_hides_no_key_changes_no_plan(config: Variant, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kv_lens = rng.integers(1, 5000, 40).tolist()
    lengths = [(1 if i % 4 else min(kv, 200), kv) for i, kv in enumerate(kv_lens)]
    tiling = tiling_of(config, num_sms=132, group=4)
    without = make_plan(batch_of(lengths), tiling, spec_of(4, 4))
    for window in (max(kv_lens) - 1, 10**6):
        plan = make_plan(batch_of(lengths), tiling, spec_of(4, 4, window_left=window))
        assert plan._replace(spec=without.spec, prefill=None, decode=None) == without._replace(
            prefill=None, decode=None
        )
        assert plan.prefill.tolist() == without.prefill.tolist()
        assert plan.decode.tolist() == without.decode.tolist()
