"""`HybridBatch`: what it derives, and what it refuses with which words."""

from __future__ import annotations

import re

import numpy as np
import pytest

from podrt.spec.batch import HybridBatch


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def with_table(qo_indptr: np.ndarray, kv_lens: np.ndarray, **changes: object) -> HybridBatch:
    geometry = {"shape": (len(kv_lens), 4), "row_stride": 4, "page_size": 16} | changes
    return HybridBatch.from_block_table(qo_indptr, kv_lens, **geometry)


def with_indptr(qo_indptr: np.ndarray, kv_lens: np.ndarray, **changes: object) -> HybridBatch:
    geometry = {"kv_indptr": i32(0, 2, 5), "num_kv_indices": 5, "page_size": 16} | changes
    return HybridBatch.from_kv_indptr(qo_indptr, kv_lens, **geometry)


def test_contiguous_properties() -> None:
    batch = HybridBatch.contiguous(i32(0, 5, 5, 6), i32(9, 0, 33))
    assert batch.num_requests == 3
    assert batch.q_lens.tolist() == [5, 0, 1]
    assert batch.q_lens.dtype == np.int32
    assert batch.total_tokens == 6
    assert batch.max_kv_len == 33
    assert (batch.min_q_len, batch.max_q_len) == (0, 5)
    assert batch.page_begin.tolist() == [0, 0, 0]
    assert batch.page_size is None


def test_block_table_pages_begin_at_strided_rows() -> None:
    batch = with_table(i32(0, 1, 2, 3), i32(64, 0, 1), row_stride=7)
    assert batch.page_begin.tolist() == [0, 7, 14]
    assert batch.page_begin.dtype == np.int32


def test_indptr_pages_begin_where_it_says() -> None:
    batch = with_indptr(i32(0, 1, 2), i32(32, 48), num_kv_indices=100)
    assert batch.page_begin.tolist() == [0, 2]


def test_empty_batch() -> None:
    nothing = i32()
    for batch in (
        HybridBatch.contiguous(i32(0), nothing),
        with_table(i32(0), nothing),
        with_indptr(i32(0), nothing, kv_indptr=i32(0), num_kv_indices=0),
    ):
        assert (batch.num_requests, batch.total_tokens, batch.max_kv_len) == (0, 0, 0)
        assert batch.page_begin.shape == batch.q_lens.shape == (0,)


def test_more_queries_than_keys_is_fine() -> None:
    assert HybridBatch.contiguous(i32(0, 9), i32(4)).q_lens.tolist() == [9]


def test_later_changes_by_the_caller_do_not_matter() -> None:
    qo_indptr, kv_lens = i32(0, 1), i32(4)
    batch = HybridBatch.contiguous(qo_indptr, kv_lens)
    kv_lens[0] = -1
    assert batch.kv_lens.tolist() == [4]
    with pytest.raises(ValueError, match="read-only"):
        batch.kv_lens[0] = 0


@pytest.mark.parametrize(
    ("qo_indptr", "kv_lens", "message"),
    [
        (i32(1, 2), i32(1), "qo_indptr[0] is 1; it must be 0"),
        (i32(0, 3, 2), i32(1, 1), "qo_indptr falls from 3 at 1 to 2 at 2"),
        (i32(0, 2**31 - 1, -2), i32(1, 1), "qo_indptr falls from 2147483647 at 1 to -2 at 2"),
        (i32(0, 3), i32(1, 1), "qo_indptr has 2 entries; expected 3"),
        (i32(), i32(), "qo_indptr has 0 entries; expected 1"),
        (i32(0, 1, 2), i32(1, -4), "kv_lens[1] is -4"),
        (i32(0, 1), i32(1).reshape(1, 1), "kv_lens has shape (1, 1)"),
    ],
)
def test_bad_lengths(qo_indptr: np.ndarray, kv_lens: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HybridBatch.contiguous(qo_indptr, kv_lens)


def test_wrong_types_name_the_argument_and_the_cast() -> None:
    with pytest.raises(TypeError, match=r'qo_indptr has dtype int64.*astype\("int32"\)'):
        HybridBatch.contiguous(np.array([0, 1]), i32(1))
    with pytest.raises(TypeError, match="kv_lens has dtype float32"):
        HybridBatch.contiguous(i32(0, 1), np.ones(1, np.float32))
    with pytest.raises(TypeError, match="kv_lens is list"):
        HybridBatch.contiguous(i32(0, 1), [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="kv_indptr has dtype int64"):
        with_indptr(i32(0, 1, 2), i32(1, 1), kv_indptr=np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (3, 4)}, "block_table has shape (3, 4); expected (2, max_pages)"),
        ({"shape": (2,)}, "block_table has shape (2,)"),
        ({"row_stride": -4}, "row stride of -4"),
        ({"row_stride": 2**31}, "row stride of 2147483648"),
        ({"page_size": 0}, "page_size is 0"),
        ({"shape": (2, 1)}, "kv_lens[1] is 17; block_table gives request 1 1 pages of 16 tokens"),
    ],
)
def test_bad_block_table(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        with_table(i32(0, 1, 2), i32(16, 17), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_indptr": i32(0, 2)}, "kv_indptr has 2 entries; expected 3"),
        ({"kv_indptr": i32(1, 2, 5)}, "kv_indptr[0] is 1"),
        ({"kv_indptr": i32(0, 2, 1)}, "kv_indptr falls from 2"),
        ({"num_kv_indices": 4}, "kv_indices has 4 entries; kv_indptr ends at 5"),
        ({"page_size": -1}, "page_size is -1"),
        ({"kv_indptr": i32(0, 2, 3)}, "kv_lens[1] is 17; kv_indptr gives request 1 1 pages"),
    ],
)
def test_bad_kv_indptr(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        with_indptr(i32(0, 1, 2), i32(16, 17), **changes)


def test_room_does_not_overflow() -> None:
    longest = np.iinfo(np.int32).max
    batch = with_table(i32(0, 1), i32(longest), shape=(1, 2**28), row_stride=2**28, page_size=16)
    assert batch.max_kv_len == longest


def test_cache_must_hold_the_batch() -> None:
    batch = HybridBatch.contiguous(i32(0, 1, 2), i32(16, 17))
    batch.require_cache((2, 17, 1, 64))
    for shape in ((1, 17, 1, 64), (2, 16, 1, 64)):
        with pytest.raises(ValueError, match=r"v_cache.*at least 2 rows of 17"):
            batch.require_cache(shape, "v_cache")
    with pytest.raises(ValueError, match=re.escape("[B, L, Hkv, D]")):
        batch.require_cache((2, 17, 64))


def test_paged_cache_must_have_the_page_size() -> None:
    batch = with_table(i32(0, 1), i32(64))
    batch.require_cache((1, 16, 1, 64))
    with pytest.raises(ValueError, match="pages of 32 tokens; expected page_size=16"):
        batch.require_cache((9, 32, 1, 64))


def test_batches_of_equal_query_lengths_share_what_is_known_of_them() -> None:
    qo_indptr = i32(0, 5, 6)
    first = HybridBatch.contiguous(qo_indptr, i32(9, 33))
    second = with_table(i32(0, 5, 6), i32(10, 34))
    assert first.queries is second.queries
    qo_indptr[1] = 4  # the caller's own
    assert first.q_lens.tolist() == second.q_lens.tolist() == [5, 1]
    assert HybridBatch.contiguous(qo_indptr, i32(9, 33)).q_lens.tolist() == [4, 2]


def test_query_lengths_of_many_requests_are_checked_too() -> None:
    many = np.arange(5001, dtype=np.int32)
    batch = HybridBatch.contiguous(many, np.ones(5000, np.int32))
    assert (batch.total_tokens, batch.min_q_len, batch.max_q_len) == (5000, 1, 1)
    many[7] = 9999
    with pytest.raises(ValueError, match="qo_indptr falls from 9999 at 7"):
        HybridBatch.contiguous(many, np.ones(5000, np.int32))


def test_requests_with_more_tokens() -> None:
    queries = HybridBatch.contiguous(i32(0, 5, 5, 6, 8), i32(9, 0, 33, 2)).queries
    for tokens in range(7):
        expected = [at for at, q_len in enumerate(queries.q_lens) if q_len > tokens]
        assert queries.above(tokens).tolist() == expected
        assert queries.num_above(tokens) == len(expected)
    prompts = HybridBatch.contiguous(i32(0, 5, 9), i32(9, 9)).queries
    assert [prompts.num_above(tokens) for tokens in (0, 3, 4, 5)] == [2, 2, 1, 0]
    nobody = HybridBatch.contiguous(i32(0), i32()).queries
    assert nobody.num_above(0) == len(nobody.above(0)) == 0


def test_rows_of_block_tables_of_any_size() -> None:
    for requests, row_stride in ((1, 5), (3, 5), (8, 5), (1000, 2_000_000), (3, 2**30 - 1)):
        batch = with_table(
            np.arange(requests + 1, dtype=np.int32),
            np.ones(requests, np.int32),
            row_stride=row_stride,
        )
        step = row_stride if requests > 1 else 0
        assert batch.page_begin.tolist() == [step * at for at in range(requests)]
        assert not batch.page_begin.flags.writeable
