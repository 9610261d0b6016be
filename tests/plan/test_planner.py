"""Plans of any ragged batch: complete, and shaped as the rules say."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_support import tiling_of
from spec_support import spec_of

from podrt.gpu.arch import DEFAULT_ARCHS
from podrt.kernels.families import Variant
from podrt.kernels.hopper.config import DECODE_ROWS
from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import Plan, Tiling, is_decode, make_plan
from podrt.plan.growth import GROWTH_STEP
from podrt.policy.calibration import H200
from podrt.reference import check_plan, execute_plan, reference_attention
from podrt.spec.batch import HybridBatch
from podrt.spec.types import HEAD_DIMS

GROUPS = (1, 3, 4, 7, 8, 16, 20, 71)
HOPPER_GROUPS = (1, 3, 7, 16, 71)
GPU = tiling_of(variant("pod", "sm_90a", "bfloat16", 128), num_sms=132, group=4)
SMALL = Tiling(
    prefill_rows=64,
    decode_rows=16,
    prefill_kv_tile=32,
    decode_kv_tile=16,
    prefill_slots=8,
    decode_slots=32,
    min_prefill_keys=1024,
    min_decode_keys=512,
    prefill_waves=2,
    decode_piece_keys=4096,
    fused_piece_keys=2048,
    taper_decode=False,
    costs=H200.hopper_cuts.costs,
)


def batch_of(lengths: list[tuple[int, int]]) -> HybridBatch:
    """A contiguous batch of requests ``(q_len, kv_len)``."""
    q_lens = [q_len for q_len, _ in lengths]
    return HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array([kv for _, kv in lengths], np.int32)
    )


def plan_of(
    lengths: list[tuple[int, int]],
    tiling: Tiling = SMALL,
    *,
    num_kv_heads: int = 1,
    group: int = 4,
    causal: bool = True,
) -> Plan:
    return make_plan(batch_of(lengths), tiling, spec_of(num_kv_heads, group, causal))


variants = st.one_of(
    st.builds(
        lambda arch, head_dim, shape: variant("pod", arch, "bfloat16", head_dim, shape=shape),
        st.sampled_from(DEFAULT_ARCHS),
        st.sampled_from(HEAD_DIMS),
        st.sampled_from(["large", "small"]),
    ),
    st.builds(
        lambda rows: hopper_variant("pod", "bfloat16", 128, decode_rows=rows),
        st.sampled_from(DECODE_ROWS),
    ),
)
nums_sms = st.sampled_from([1, 2, 7])


@st.composite
def ragged(
    draw: st.DrawFn, most_rows: int, most_keys: int, groups: tuple[int, ...] = GROUPS
) -> tuple[int, list[tuple[int, int]]]:
    """A group, and requests of at most `most_rows` packed rows; some decodes, some empty."""
    group = draw(st.sampled_from(groups))
    q_len = st.one_of(st.sampled_from([0, 1, 1, 2]), st.integers(0, max(2, most_rows // group)))
    kv_len = st.one_of(st.sampled_from([0, 1, 15, 16, 17]), st.integers(0, most_keys))
    return group, draw(st.lists(st.tuples(q_len, kv_len), max_size=5))


@settings(deadline=None, max_examples=100)
@given(
    requests=ragged(300, 3000),
    config=variants,
    num_sms=nums_sms,
    heads=st.integers(1, 8),
    causal=st.booleans(),
)
def test_any_batch_is_covered_exactly_once(
    requests: tuple[int, list[tuple[int, int]]],
    config: Variant,
    num_sms: int,
    heads: int,
    causal: bool,
) -> None:
    group, lengths = requests
    tiling = tiling_of(config, num_sms, group)
    plan = plan_of(lengths, tiling, num_kv_heads=heads, group=group, causal=causal)
    check_plan(plan, batch_of(lengths))
    for items, most_rise in ((plan.prefill, 0), (plan.decode, GROWTH_STEP - 1)):
        num_keys = items["kv_end"] - items["kv_begin"]
        assert (np.diff(num_keys) <= most_rise).all(), "longest first"


@settings(deadline=None, max_examples=60)
@given(
    requests=ragged(150, 1300),
    config=variants,
    num_sms=nums_sms,
    heads=st.integers(1, 2),
    causal=st.booleans(),
    page_size=st.sampled_from([None, 16]),
    seed=st.integers(0, 2**16),
)
def test_walking_the_plan_in_any_order_gives_the_reference(
    requests: tuple[int, list[tuple[int, int]]],
    config: Variant,
    num_sms: int,
    heads: int,
    causal: bool,
    page_size: int | None,
    seed: int,
) -> None:
    group, lengths = requests
    rng = np.random.default_rng(seed)
    batch, table = batch_of(lengths), None
    shape = (len(lengths), batch.max_kv_len, heads, 8)
    if page_size:
        batch, table, pages = paged(batch, page_size, rng)
        shape = (pages, page_size, heads, 8)
    tiling = tiling_of(config, num_sms, group)
    plan = make_plan(batch, tiling, spec_of(heads, group, causal))
    check_plan(plan, batch)
    q = rng.standard_normal((batch.total_tokens, heads * group, 8))
    k, v = rng.standard_normal((2, *shape))
    pages_are = {"page_table": table, "page_size": page_size}
    out, lse = execute_plan(plan, q, k, v, **pages_are, order=seed)
    expected_out, expected_lse = reference_attention(q, k, v, batch, causal=causal, **pages_are)
    np.testing.assert_allclose(out, expected_out, rtol=0, atol=1e-9)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(
    requests=ragged(600, 1300, HOPPER_GROUPS),
    decode_rows=st.sampled_from(DECODE_ROWS),
    num_sms=nums_sms,
    causal=st.booleans(),
)
def test_hopper_tiles_hold_whole_tokens(
    requests: tuple[int, list[tuple[int, int]]], decode_rows: int, num_sms: int, causal: bool
) -> None:
    group, lengths = requests
    tiling = tiling_of(
        hopper_variant("pod", "bfloat16", 128, decode_rows=decode_rows), num_sms, group
    )
    plan = plan_of(lengths, tiling, group=group, causal=causal)
    check_plan(plan, batch_of(lengths))
    assert plan.prefill_rows == 128 // group * group
    assert plan.decode_rows == decode_rows
    # One copy of the engine is a box of whole tokens by all heads of a group.
    assert (plan.prefill["row_begin"] % group == 0).all()
    assert (plan.prefill["row_begin"] % plan.prefill_rows == 0).all()


def paged(
    batch: HybridBatch, page_size: int, rng: np.random.Generator
) -> tuple[HybridBatch, np.ndarray, int]:
    """The batch over shuffled pages, its flat page table, and the number of pages."""
    max_pages = -(-batch.max_kv_len // page_size)
    num_pages = batch.num_requests * max_pages
    over_pages = HybridBatch.from_block_table(
        batch.qo_indptr,
        batch.kv_lens,
        shape=(batch.num_requests, max_pages),
        row_stride=max_pages,
        page_size=page_size,
    )
    return over_pages, rng.permutation(num_pages).astype(np.int32), num_pages


@pytest.mark.parametrize(
    ("q_len", "group", "expected"),
    [
        (0, 4, True),
        (1, 1, True),
        (1, 71, True),  # one token is a decode, however many tiles its heads fill
        (2, 8, True),
        (4, 4, True),
        (16, 1, True),
        (17, 1, False),
        (5, 4, False),
        (2, 9, False),
    ],
)
def test_decodes_are_single_tokens_or_share_one_tile(
    q_len: int, group: int, expected: bool
) -> None:
    assert is_decode(np.array([q_len], np.int32), group, 16).tolist() == [expected]


def test_sides_follow_the_requests_in_any_order() -> None:
    plan = plan_of([(1, 50), (100, 200), (0, 9), (4, 10), (5, 10), (1, 0)])
    assert set(plan.decode["request"].tolist()) == {0, 3, 5}
    assert set(plan.prefill["request"].tolist()) == {1, 4}
    assert plan.num_decode_units == len(plan.decode)


def test_units_count_kv_heads() -> None:
    plan = plan_of([(1, 50), (100, 200)], num_kv_heads=8)
    assert plan.num_prefill_units == 8 * len(plan.prefill)
    assert plan.num_decode_units == 8 * len(plan.decode)


def test_tiles_are_blocks_of_packed_rows() -> None:
    plan = plan_of([(40, 40)], group=3)
    assert sorted(plan.prefill["row_begin"].tolist()) == [0, 64]
    assert len(plan_of([(1, 40)], group=71).decode) == 5


def test_causal_tiles_end_where_their_last_token_sees() -> None:
    plan = plan_of([(32, 100)])  # 4 heads in a group: 16 tokens to a tile
    ends = dict(zip(plan.prefill["row_begin"], plan.prefill["kv_end"], strict=True))
    assert ends == {0: 84, 64: 100}
    full = plan_of([(32, 100)], causal=False)
    assert set(full.prefill["kv_end"].tolist()) == {100}


def test_rows_before_the_first_key_still_have_an_item() -> None:
    plan = plan_of([(40, 3)])
    assert plan.prefill["kv_end"].tolist() == [3, 0, 0]
    check_plan(plan, batch_of([(40, 3)]))


@pytest.mark.parametrize("lengths", [[], [(0, 100)], [(0, 0), (0, 7)]])
def test_nothing_to_do(lengths: list[tuple[int, int]]) -> None:
    plan = plan_of(lengths)
    assert len(plan.prefill) == len(plan.decode) == 0
    assert (plan.num_merges, plan.partial_rows) == (0, 0)
    check_plan(plan, batch_of(lengths))


def test_one_long_decode_is_split_over_the_gpu() -> None:
    plan = plan_of([(1, 1_000_000)], GPU, num_kv_heads=8)
    longest = (plan.decode["kv_end"] - plan.decode["kv_begin"]).max()
    assert GPU.min_decode_keys <= longest <= GPU.decode_piece_keys
    assert GPU.decode_slots <= plan.num_decode_units <= 4 * GPU.decode_slots
    assert plan.num_merges == 1
    assert plan.partial_rows == len(plan.decode) * GPU.decode_rows


def test_short_decodes_are_not_split() -> None:
    plan = plan_of([(1, GPU.min_decode_keys)] * 3 + [(1, 1)], GPU)
    assert plan.decode["num_splits"].tolist() == [1, 1, 1, 1]


def test_decodes_that_fill_the_gpu_are_not_split() -> None:
    plan = plan_of([(1, 4096)] * 2 * SMALL.decode_slots)
    assert plan.num_merges == 0


def test_decodes_have_shorter_pieces_beside_prefill() -> None:
    decodes = [(1, 32768)] * SMALL.decode_slots
    for lengths, most in ((decodes, 4096), ([(64, 64), *decodes], 2048)):
        decode = plan_of(lengths).decode
        assert (decode["kv_end"] - decode["kv_begin"]).max() == most


@pytest.mark.parametrize("num_kv_heads", [1, 8])
def test_lone_prefill_that_leaves_the_gpu_idle_is_split(num_kv_heads: int) -> None:
    plan = plan_of([(64, 512 * 1024)], GPU, num_kv_heads=num_kv_heads, group=1)
    assert num_kv_heads < plan.num_prefill_units <= GPU.prefill_waves * GPU.prefill_slots
    assert plan.num_merges == 1


def test_lone_prefill_that_nearly_fills_the_gpu_is_not_split() -> None:
    tiles = int(0.9 * GPU.prefill_slots)
    plan = plan_of([(tiles * GPU.prefill_rows, 64 * 1024)], GPU, group=1, causal=False)
    assert plan.num_merges == 0


def test_prefill_is_not_split_when_decodes_fill_the_gpu() -> None:
    prefill = (64, 8 * 1024)
    assert plan_of([prefill]).num_merges == 4  # 16 tokens to a tile
    beside_decodes = plan_of([prefill] + [(1, 64)] * SMALL.decode_slots)
    assert beside_decodes.num_merges == 0
    few_decodes = plan_of([prefill] + [(1, 64)] * (SMALL.decode_slots - 1))
    assert few_decodes.num_merges == 4


def test_prefill_that_would_leave_the_gpu_idle_at_the_end_is_split() -> None:
    plan = plan_of([(16 * 9, 8 * 1024)])  # 9 tiles for 8 slots
    assert plan.num_merges == 9
    beside_decodes = plan_of([(16 * 9, 8 * 1024)] + [(1, 64)] * SMALL.decode_slots)
    assert beside_decodes.num_merges == 0


def test_prefill_that_fills_the_gpu_is_not_split() -> None:
    tokens = 16 * SMALL.prefill_slots
    assert plan_of([(tokens, 8 * 1024)]).num_merges == 0


def test_merges_and_partial_rows_of_both_sides_are_apart() -> None:
    lengths = [(20, 6000), (1, 9000)]
    plan = plan_of(lengths)
    assert set(plan.prefill["merge"].tolist()).isdisjoint(plan.decode["merge"].tolist())
    assert (plan.decode["num_splits"] > 1).all()
    assert plan.decode["partial_row"].min() >= plan.prefill["partial_row"].max() + 64
    check_plan(plan, batch_of(lengths))


def test_items_point_into_the_page_table() -> None:
    batch = HybridBatch.from_kv_indptr(
        np.array([0, 1, 21], np.int32),
        np.array([33, 40], np.int32),
        kv_indptr=np.array([0, 3, 6], np.int32),
        num_kv_indices=6,
        page_size=16,
    )
    plan = make_plan(batch, SMALL, spec_of())
    assert plan.decode[["page_begin", "q_begin"]].tolist() == [(0, 0)]
    assert plan.prefill[["page_begin", "q_begin"]].tolist() == [(3, 1)]


@given(data=st.data())
def test_splitting_without_limit_is_right_too(data: st.DataObject) -> None:
    lengths = data.draw(
        st.lists(st.tuples(st.integers(0, 70), st.integers(0, 900)), min_size=1, max_size=4)
    )
    tiling = replace(SMALL, prefill_waves=None, prefill_slots=data.draw(st.integers(1, 60)))
    batch = batch_of(lengths)
    check_plan(make_plan(batch, tiling, spec_of(2, 3)), batch)


def test_splitting_without_limit_ignores_the_decodes() -> None:
    prefill, decodes = (64, 8 * 1024), [(1, 4096)] * GPU.decode_slots
    unlimited = replace(GPU, prefill_waves=None)
    assert plan_of([prefill, *decodes], GPU, group=1).prefill["num_splits"].max() == 1
    assert plan_of([prefill, *decodes], unlimited, group=1).prefill["num_splits"].max() > 1


def test_what_is_kept_of_query_lengths_goes_with_them() -> None:
    """Without waiting for the garbage collector: it is kilobytes for every change of a batch."""
    batch = batch_of([(300, 400), (1, 7000), (1, 9)])
    plan_of([(300, 400), (1, 7000), (1, 9)])
    make_plan(batch, GPU, spec_of(8, 4))
    assert batch.queries.derived
    freed = weakref.ref(batch.queries)
    gc.disable()
    try:
        del batch
        for tokens in range(1, 20):  # others take its place
            HybridBatch.contiguous(np.array([0, tokens], np.int32), np.array([tokens], np.int32))
        assert freed() is None
    finally:
        gc.enable()
