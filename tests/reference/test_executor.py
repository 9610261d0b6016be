"""The executor and the coverage count, on plans cut by a few lines below."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_support import spec_of

from podrt.plan.work import WORK_ITEM, Plan, keys_of
from podrt.reference import (
    check_plan,
    coverage,
    execute_plan,
    expected_coverage,
    flat_page_table,
    reference_attention,
)
from podrt.spec.batch import HybridBatch

HEAD_DIM = 8
PAGE_SIZE = 4
ROWS = {"prefill": 8, "decode": 4}


def cut(
    batch: HybridBatch, group: int = 2, kv_heads: int = 2, split_keys: int = 5, causal: bool = True
) -> Plan:
    """A plan whose items have at most `split_keys` keys; requests of one token are decodes."""
    items: dict[str, list[tuple[int, ...]]] = {"prefill": [], "decode": []}
    merges = partial_row = 0
    for i in range(batch.num_requests):
        q_len, kv_len = int(batch.q_lens[i]), int(batch.kv_lens[i])
        side = "decode" if q_len == 1 else "prefill"
        for row in range(0, q_len * group, ROWS[side]):
            last_row = min(row + ROWS[side], q_len * group) - 1
            reach = kv_len - q_len + last_row // group + 1 if causal else kv_len
            begins = list(range(0, max(reach, 0), split_keys)) or [0]
            merge = (len(begins), partial_row, merges) if len(begins) > 1 else (1, 0, 0)
            head = (i, batch.page_begin[i], batch.qo_indptr[i], q_len, kv_len, row)
            for split, begin in enumerate(begins):
                end = min(begin + split_keys, max(reach, 0))
                items[side].append((*head, begin, end, split, *merge))
            if len(begins) > 1:
                merges, partial_row = merges + 1, partial_row + len(begins) * ROWS[side]
    prefill, decode = (np.array(items[side], WORK_ITEM) for side in ("prefill", "decode"))
    return Plan(
        prefill,
        decode,
        spec_of(kv_heads, group, causal),
        ROWS["prefill"],
        ROWS["decode"],
        merges,
        partial_row,
        prefill_keys=int(keys_of(prefill).sum()),
        decode_keys=int(keys_of(decode).sum()),
    )


def make_batch(q_lens: list[int], kv_lens: list[int]) -> HybridBatch:
    return HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )


def tensors(
    batch: HybridBatch, group: int = 2, kv_heads: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k and v; slots beyond the lengths hold NaN."""
    rng = np.random.default_rng(7)
    q = rng.standard_normal((batch.total_tokens, kv_heads * group, HEAD_DIM), np.float32)
    shape = (2, batch.num_requests, batch.max_kv_len, kv_heads, HEAD_DIM)
    k, v = rng.standard_normal(shape, np.float32)
    for i, kv_len in enumerate(batch.kv_lens):
        k[i, kv_len:] = v[i, kv_len:] = np.nan
    return q, k, v


def replaced(plan: Plan, side: str, number: int, **fields: int) -> Plan:
    items = getattr(plan, side).copy()
    for name, value in fields.items():
        items[name][number] = value
    return plan._replace(**{side: items})


MIXED = make_batch([9, 1, 0, 6, 4, 1, 2], [23, 17, 4, 6, 2, 1, 0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("split_keys", [3, 100])
@pytest.mark.parametrize("order", [None, 0, 1])
def test_agrees_with_the_reference(
    causal: bool, group: int, split_keys: int, order: int | None
) -> None:
    q, k, v = tensors(MIXED, group)
    plan = cut(MIXED, group, split_keys=split_keys, causal=causal)
    out, lse = execute_plan(plan, q, k, v, kv_tile=2, order=order)
    expected_out, expected_lse = reference_attention(q, k, v, MIXED, causal=causal)
    np.testing.assert_allclose(out, expected_out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-12)


def test_pages_and_scale() -> None:
    batch = HybridBatch.from_block_table(
        MIXED.qo_indptr, MIXED.kv_lens, shape=(7, 6), row_stride=6, page_size=PAGE_SIZE
    )
    rng = np.random.default_rng(3)
    table = rng.permutation(7 * 6).reshape(7, 6).astype(np.int32)
    q, _, _ = tensors(batch)
    k, v = rng.standard_normal((2, 7 * 6, PAGE_SIZE, 2, HEAD_DIM))
    pages = {"page_table": flat_page_table(table), "page_size": PAGE_SIZE, "sm_scale": 0.3}
    got = execute_plan(cut(batch), q, k, v, **pages)
    expected = reference_attention(q, k, v, batch, **pages)
    np.testing.assert_allclose(got[0], expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(got[1], expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("split_keys", [3, 100])
@pytest.mark.parametrize("value_dim", [5, HEAD_DIM + 3])
def test_values_of_another_width_than_keys(split_keys: int, value_dim: int) -> None:
    q, k, v = tensors(MIXED)
    v = np.concatenate((v, -2 * v), axis=3)[..., :value_dim]
    got = execute_plan(cut(MIXED, split_keys=split_keys), q, k, v, kv_tile=2, order=0)
    expected = reference_attention(q, k, v, MIXED)
    for array, exact in zip(got, expected, strict=True):
        np.testing.assert_allclose(array, exact, rtol=0, atol=1e-12)


def test_every_order_of_three_splits_merges() -> None:
    batch = make_batch([1], [13])
    q, k, v = tensors(batch, kv_heads=1)
    plan = cut(batch, kv_heads=1)
    expected, _ = reference_attention(q, k, v, batch)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]):
        out, _ = execute_plan(plan, q, k, v, order=order)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


def test_rows_that_no_item_writes_stay_nan() -> None:
    batch = make_batch([1, 1], [3, 3])
    q, k, v = tensors(batch)
    plan = cut(batch)
    out, lse = execute_plan(plan._replace(decode=plan.decode[:1]), q, k, v)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()
    assert np.isnan(lse[1]).all()


def test_merging_what_was_never_written_shows() -> None:
    batch = make_batch([1], [9])
    q, k, v = tensors(batch)
    twice_the_same = replaced(cut(batch), "decode", 1, split=0)
    assert np.isnan(execute_plan(twice_the_same, q, k, v)[0]).all()


def test_arguments_that_disagree() -> None:
    batch = make_batch([1], [9])
    q, k, v = tensors(batch)
    plan = cut(batch)
    with pytest.raises(ValueError, match="merge 0 of KV head 0 is left with 1 splits"):
        execute_plan(plan._replace(decode=plan.decode[:1]), q, k, v)
    with pytest.raises(ValueError, match="no permutation of the plan's 4 units"):
        execute_plan(plan, q, k, v, order=[0, 1, 1, 2])
    with pytest.raises(ValueError, match="kv_tile is 0"):
        execute_plan(plan, q, k, v, kv_tile=0)
    with pytest.raises(ValueError, match="must be given together"):
        execute_plan(plan, q, k, v, page_size=16)
    with pytest.raises(ValueError, match="k_cache has pages of 9"):
        execute_plan(plan, q, k, v, page_size=16, page_table=np.zeros(1, np.int32))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 19)), max_size=5),
    group=st.integers(1, 5),
    split_keys=st.integers(1, 20),
    causal=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_right_plan_is_covered_and_right(
    lengths: list[tuple[int, int]], group: int, split_keys: int, causal: bool, seed: int
) -> None:
    batch = make_batch([q for q, _ in lengths], [kv for _, kv in lengths])
    plan = cut(batch, group, 1, split_keys, causal)
    check_plan(plan, batch)
    q, k, v = tensors(batch, group, 1)
    out, lse = execute_plan(plan, q, k, v, kv_tile=3, order=seed)
    expected_out, expected_lse = reference_attention(q, k, v, batch, causal=causal)
    np.testing.assert_allclose(out, expected_out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-12)


def test_coverage_counts_pairs() -> None:
    batch = make_batch([2], [3])
    plan = cut(batch, group=2)
    seen = [[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert coverage(plan, batch)[0].tolist() == seen
    assert expected_coverage(plan, batch)[0].tolist() == seen
    twice = plan._replace(prefill=np.repeat(plan.prefill, 2))
    assert coverage(twice, batch)[0].tolist() == [[2 * n for n in row] for row in seen]


@pytest.mark.parametrize(
    ("number", "fields", "message"),
    [
        (0, {"kv_begin": 1}, "key 0 are computed 0 times"),
        (1, {"kv_begin": 4}, "key 4 are computed 2 times"),
        (0, {"kv_end": 99}, "keys 0 to 99 of 12"),
        (0, {"request": 5}, "request=5 of 1"),
        (0, {"kv_len": 11}, "kv_len=11; request 0 has 12"),
        (0, {"q_begin": 1}, "q_begin=1; request 0 has 0"),
        (0, {"row_begin": 16}, "row_begin=16, q_len=6 with 12 packed rows"),
        (1, {"split": 0}, "merge 0 has splits"),
        (1, {"num_splits": 3}, "merge 0 is used by tiles"),
        (0, {"merge": 7}, "merges"),
    ],
)
def test_check_plan_names_what_is_wrong(number: int, fields: dict[str, int], message: str) -> None:
    batch = make_batch([6], [12])
    plan = cut(batch)
    check_plan(plan, batch)
    with pytest.raises(ValueError, match=message):
        check_plan(replaced(plan, "prefill", number, **fields), batch)


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 19)), min_size=1, max_size=4),
    group=st.integers(1, 5),
    causal=st.booleans(),
    changes=st.lists(
        st.tuples(
            st.sampled_from(["prefill", "decode"]),
            st.sampled_from(["row_begin", "kv_begin", "kv_end"]),
            st.integers(0, 99),
            st.sampled_from([-3, -1, 1, 2]),
        ),
        max_size=2,
    ),
)
def test_check_plan_agrees_with_counting_every_pair(
    lengths: list[tuple[int, int]],
    group: int,
    causal: bool,
    changes: list[tuple[str, str, int, int]],
) -> None:
    batch = make_batch([q for q, _ in lengths], [kv for _, kv in lengths])
    plan = cut(batch, group, 1, 5, causal)
    for side, field, number, change in changes:
        items = getattr(plan, side)
        if len(items):
            number %= len(items)
            plan = replaced(plan, side, number, **{field: items[field][number] + change})
    try:
        got = coverage(plan, batch)
    except ValueError:  # an item reaches outside its request
        with pytest.raises(ValueError):
            check_plan(plan, batch)
        return
    wrong = any((a != b).any() for a, b in zip(got, expected_coverage(plan, batch), strict=True))
    try:
        check_plan(plan, batch)
    except ValueError as error:
        assert wrong or "are computed" not in str(error)  # or else it broke another rule
    else:
        assert not wrong


def test_check_plan_of_a_million_keys_needs_no_table_of_pairs() -> None:
    batch = make_batch([65536, 1], [1_000_000, 1_000_000])
    plan = cut(batch, group=1, split_keys=500_000)
    tracemalloc.start()
    try:
        check_plan(plan, batch)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="and key 999999 are computed 0 times"):
        check_plan(replaced(plan, "decode", 1, kv_end=999_999), batch)


def test_check_plan_wants_every_row_written_once() -> None:
    batch = make_batch([2], [0])
    plan = cut(batch)
    with pytest.raises(ValueError, match="packed row 0 is written 0 times"):
        check_plan(plan._replace(prefill=plan.prefill[:0]), batch)
    with pytest.raises(ValueError, match="packed row 0 is written 2 times"):
        check_plan(plan._replace(prefill=np.repeat(plan.prefill, 2)), batch)


def test_check_plan_wants_partial_rows_of_ones_own() -> None:
    batch = make_batch([1, 1], [9, 9])
    plan = cut(batch)
    for number in (2, 3):
        plan = replaced(plan, "decode", number, partial_row=4)
    with pytest.raises(ValueError, match="partial row 4 belongs to two splits"):
        check_plan(plan, batch)
    with pytest.raises(ValueError, match="partial rows 8 to 12 of 9"):
        check_plan(plan._replace(partial_rows=9), batch)
