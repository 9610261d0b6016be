"""Prefixes that requests share: found as well as can be, and batches parted by them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podrt.spec.batch import HybridBatch
from podrt.spec.prefixes import checked_prefixes, equal_first_pages, find_prefixes, sharing
from podrt.spec.shared_prefix import SharedPrefix

PAGE = 16


def batch_of(rows: Sequence[Sequence[int]], lengths: Sequence[tuple[int, int]]) -> tuple:
    """A batch of (q_len, kv_len) whose requests have these pages; and its flat page table."""
    width = max(map(len, rows))
    table = np.full((len(rows), width), -1, np.int32)
    for row, pages in zip(table, rows, strict=True):
        row[: len(pages)] = pages
    q_lens, kv_lens = (np.array(each, np.int32) for each in zip(*lengths, strict=True))
    indptr = np.concatenate(([0], np.cumsum(q_lens))).astype(np.int32)
    batch = HybridBatch.from_block_table(
        indptr, kv_lens, shape=table.shape, row_stride=width, page_size=PAGE
    )
    return batch, table.reshape(-1)


def found_in(rows: Sequence[Sequence[int]], lengths: Sequence[tuple[int, int]]) -> list:
    return found_of(*batch_of(rows, lengths))


def found_of(batch: HybridBatch, pages: np.ndarray, **options: int) -> list:
    width = len(pages) // batch.num_requests
    return find_prefixes(
        batch, equal_first_pages(pages, batch.page_begin, batch.page_begin + width), **options
    )


def test_neighbours_with_equal_first_pages_share_them() -> None:
    rows = [[7, 8, 1], [7, 8, 2], [7, 8, 3], [4, 5, 6]]
    assert found_in(rows, [(1, 48)] * 4) == [SharedPrefix(0, 3, 32)]


def test_pages_with_new_tokens_are_not_shared() -> None:
    rows = [[7, 8], [7, 8]]
    assert found_in(rows, [(1, 33 - 1), (1, 32)]) == [SharedPrefix(0, 2, 16)]
    assert found_in(rows, [(17, 32), (1, 32)]) == []


def test_equal_pages_behind_a_difference_are_not_shared() -> None:
    assert found_in([[1, 8, 9], [2, 8, 9]], [(1, 48)] * 2) == []


def test_two_groups_under_one_short_prefix_are_better_apart() -> None:
    rows = [[0, 1, 2, 3, 10], [0, 1, 2, 3, 11], [0, 4, 5, 6, 12], [0, 4, 5, 6, 13]]
    assert found_in(rows, [(1, 80)] * 4) == [SharedPrefix(0, 2, 64), SharedPrefix(2, 4, 64)]


def test_a_long_common_prefix_is_better_than_parts_that_are_a_little_longer() -> None:
    rows = [[0, 1, 2, 3, 10], [0, 1, 2, 3, 11], [0, 1, 2, 6, 12], [0, 1, 2, 6, 13]]
    assert found_in(rows, [(1, 80)] * 4) == [SharedPrefix(0, 4, 48)]


def test_prefixes_that_save_little_are_left_out() -> None:
    batch, pages = batch_of([[7, 8], [7, 9]], [(1, 32)] * 2)
    assert found_of(batch, pages, least_saved_keys=16) == [SharedPrefix(0, 2, 16)]
    assert found_of(batch, pages, least_saved_keys=17) == []


def most_saved(alike: list[int]) -> int:
    """Keys saved by the best way to part requests, all ways tried."""
    best = [0] * (len(alike) + 2)
    for end in range(1, len(alike) + 2):
        best[end] = max(
            best[begin] + (end - begin - 1) * min(alike[begin : end - 1], default=0)
            for begin in range(end)
        )
    return best[-1]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=9))
def test_what_is_found_saves_most(tree: list[list[int]]) -> None:
    """Pages are named by the path to them, so equal numbers mean equal prefixes."""
    names: dict[tuple[int, ...], int] = {}
    rows = [
        [names.setdefault(tuple(path[:depth]), len(names)) for depth in range(1, 5)]
        for path in tree
    ]
    batch, pages = batch_of(rows, [(1, 4 * PAGE)] * len(rows))
    found = found_of(batch, pages)
    alike = [
        PAGE * sum(a == b for a, b in zip(one[:3], other[:3], strict=True))
        for one, other in pairwise(rows)
    ]
    assert sum((end - begin - 1) * keys for begin, end, keys in found) == most_saved(alike)
    assert found == checked_prefixes(batch, found)


def test_requests_keep_the_keys_that_follow_and_prefixes_are_requests() -> None:
    rows = [[9, 1], [7, 8, 1], [7, 8, 2], [3, 4, 5]]
    lengths = [(2, 20), (1, 40), (5, 45), (3, 48)]
    batch, pages = batch_of(rows, lengths)
    shared = sharing(batch, [SharedPrefix(1, 3, 32)])
    assert shared.q_lens.tolist() == [2, 1, 5, 3, 6]
    assert shared.queries.q_begin.tolist() == [0, 2, 3, 8, 2]
    assert shared.kv_lens.tolist() == [20, 8, 13, 48, 32]
    assert [pages[begin] for begin in shared.page_begin] == [9, 1, 2, 3, 7]
    assert (shared.total_tokens, shared.max_kv_len) == (11, 48)
    assert [shared.as_given(each, 0) for each in range(5)] == [
        (0, 0),
        (1, 2),
        (2, 2),
        (3, 0),
        (1, 0),
    ]
    assert sharing(batch, [SharedPrefix(1, 3, 32)]).queries is shared.queries
    sharing(batch, [SharedPrefix(1, 3, 16)])  # has the same tokens
    other = sharing(batch, [SharedPrefix(0, 2, 16)])
    assert other.queries is not shared.queries
    assert len([key for key in batch.queries.derived if key is sharing]) == 1
    assert (shared.first_prefix, batch.first_prefix) == (4, None)


def test_without_prefixes_a_batch_stays_what_it_is() -> None:
    batch, _ = batch_of([[1], [2]], [(1, 3), (4, 5)])
    assert sharing(batch, []) is batch


def test_tokens_to_join_cost_something_too() -> None:
    rows = [[7, 8, 1], [7, 8, 2], [7, 8, 3]]
    batch, pages = batch_of(rows, [(1, 48), (2, 48), (1, 48)])
    found = [SharedPrefix(0, 3, 32)]
    options = {"least_saved_keys": 40, "least_saved_a_token": 6}
    assert found_of(batch, pages, **options) == found
    assert found_of(batch, pages, **options | {"least_saved_a_token": 7}) == []


def test_requests_of_many_tokens_are_left_out() -> None:
    rows = [[7, 8, 1], [7, 8, 2], [7, 8, 3, 4], [7, 8, 9]]
    batch, pages = batch_of(rows, [(1, 48), (2, 48), (9, 60), (1, 48)])
    assert found_of(batch, pages, most_tokens=8) == [SharedPrefix(0, 2, 32)]


def test_the_prefixes_that_save_most_are_kept() -> None:
    rows = [[7, 8, 1], [7, 8, 2], [3, 1], [3, 2], [4, 5, 6, 1], [4, 5, 6, 2]]
    batch, pages = batch_of(rows, [(1, 48), (1, 48), (1, 32), (1, 32), (1, 64), (1, 64)])
    assert found_of(batch, pages, most_prefixes=2) == [
        SharedPrefix(0, 2, 32),
        SharedPrefix(4, 6, 48),
    ]


@pytest.mark.parametrize(
    ("given_prefixes", "message"),
    [
        ([(0, 3, 16)], "requests must be from 0 to 2"),
        ([(0, 2, 16), (1, 2, 16)], r"shared_prefixes\[1\].*none within another"),
        ([(0, 2, 8)], "must be whole pages of 16"),
        ([(0, 2, 48)], "request 1 has 40 keys, 2 of them new; at most 38 can be shared"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(given_prefixes: list, message: str) -> None:
    batch, _ = batch_of([[1, 2, 3], [1, 2, 4]], [(1, 48), (2, 40)])
    with pytest.raises(ValueError, match=message):
        checked_prefixes(batch, given_prefixes)


@pytest.mark.parametrize(
    "given_prefixes",
    [5, None, "find", b"find", (1, 3, 320), [(1.5, 3, 16)], [(1, 3)], [None], True],
)
def test_what_is_no_prefix_is_refused_by_name(given_prefixes: Any) -> None:
    batch, _ = batch_of([[1, 2, 3], [1, 2, 4]], [(1, 48), (2, 40)])
    with pytest.raises(TypeError, match=r"shared_prefixes.*three ints each"):
        checked_prefixes(batch, given_prefixes)


def test_numbers_of_any_kind_may_come_one_by_one() -> None:
    batch, _ = batch_of([[1, 2, 3], [1, 2, 4]], [(1, 48), (2, 40)])
    given_prefixes = (iter(np.array([0, 2, 16])) for _ in range(1))
    assert checked_prefixes(batch, given_prefixes) == [SharedPrefix(0, 2, 16)]


def test_requests_without_tokens_save_nothing() -> None:
    rows = [[7, 8, 1], [7, 8, 2], [7, 8, 3]]
    assert found_in(rows, [(0, 48), (0, 48), (1, 48)]) == []


def test_a_contiguous_cache_has_nothing_to_share() -> None:
    batch = HybridBatch.contiguous(np.array([0, 1], np.int32), np.array([5], np.int32))
    with pytest.raises(ValueError, match="page_size=None"):
        find_prefixes(batch, np.empty(0, np.int64))
