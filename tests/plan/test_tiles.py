"""Tiles of requests, and the order of what is longest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podrt.plan.tile_rows import TileRows
from podrt.plan.tiles import Tiles, longest_first, tiles_of
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import Mask
from podrt.spec.query_lengths import QueryLengths

requests_of = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 2000)), min_size=1, max_size=6)


def queries_of(q_lens: list[int]) -> QueryLengths:
    qo_indptr = np.concatenate(([0], np.cumsum(q_lens))).astype(np.int32)
    return HybridBatch.contiguous(qo_indptr, np.zeros(len(q_lens), np.int32)).queries


@given(
    requests=requests_of,
    tile_rows=st.sampled_from([16, 64, 126, 128]),
    group=st.sampled_from([1, 3, 4, 7, 71]),
    causal=st.booleans(),
)
def test_each_tile_sees_what_its_last_token_sees(
    requests: list[tuple[int, int]], tile_rows: int, group: int, causal: bool
) -> None:
    expected = []
    for request, (q_len, kv_len) in enumerate(requests):
        for begin in range(0, q_len * group, tile_rows):
            last = min((begin + tile_rows - 1) // group, q_len - 1)
            keys = min(max(kv_len - q_len + last + 1, 0), kv_len) if causal else kv_len
            expected.append((request, begin, keys))
    queries = queries_of([q_len for q_len, _ in requests])
    rows = TileRows(queries, np.arange(len(requests)), tile_rows, group)
    kv_lens = np.array([kv_len for _, kv_len in requests], np.int32)
    tiles = tiles_of(rows, kv_lens, 64, Mask(causal))
    row_begin = np.zeros(len(tiles)) if tiles.row_begin is None else tiles.row_begin
    assert list(zip(tiles.request, row_begin, tiles.keys, strict=True)) == expected
    keys = [each[2] for each in expected]
    assert tiles.order().tolist() == sorted(range(len(keys)), key=lambda tile: -keys[tile])
    assert tiles.falling_keys().tolist() == sorted(keys, reverse=True)
    assert (tiles.longest, tiles.total) == (max(*keys, 1), sum(keys))


def test_requests_that_fit_into_one_tile_see_all_their_keys() -> None:
    rows = TileRows(queries_of([4, 1, 2]), np.array([0, 2]), 16, 4)
    tiles = tiles_of(rows, np.array([100, 0, 3], np.int32), 64, Mask(True))
    assert tiles.request.tolist() == [0, 2]
    assert tiles.keys.tolist() == [100, 3]
    assert tiles.row_begin is None


def test_sums_of_tiles() -> None:
    tiles = Tiles(np.arange(3), np.array([0.0, 65.0, 64.0]), 64)
    assert tiles.steps.tolist() == [1, 2, 1]
    assert (tiles.longest, tiles.longest_steps, tiles.total, len(tiles)) == (65, 2, 129, 3)
    assert tiles.order().tolist() == [1, 2, 0]
    assert tiles.falling_keys().tolist() == [65, 64, 0]


@pytest.mark.parametrize("longest", [10, 65_535, 65_536, 2**31 - 1])
def test_the_longest_come_first_and_equal_ones_in_order(longest: int) -> None:
    keys = np.array([0, longest, 5, longest, 0, longest - 1], np.float64)
    assert longest_first(keys, longest).tolist() == [1, 3, 5, 2, 0, 4]


def test_tiles_of_a_batch_do_not_depend_on_those_of_the_batch_before() -> None:
    rng = np.random.default_rng(0)
    rows = TileRows(queries_of([1] * 50), np.arange(50), 16, 4)
    kv_lens = rng.integers(0, 40, 50).astype(np.int32)
    for growth in (0, 1, 5, rng.integers(0, 2, 50), -1, 1, rng.permutation(50), 1):
        kv_lens = np.maximum(kv_lens + growth, 0).astype(np.int32)
        tiles = tiles_of(rows, kv_lens, 64, Mask())
        assert tiles.order().tolist() == np.argsort(-kv_lens, kind="stable").tolist()
        assert (tiles.longest, tiles.total) == (kv_lens.max(), kv_lens.sum())


def test_tiles_without_keys_that_begin_to_grow() -> None:
    rows = TileRows(queries_of([1] * 20), np.arange(20), 16, 4)
    for keys in (0, 0, 3, 0):
        tiles = tiles_of(rows, np.full(20, keys, np.int32), 64, Mask())
        assert (tiles.longest, tiles.total) == (max(keys, 1), 20 * keys)


@pytest.mark.parametrize("count", [6, 100])
def test_few_and_many_are_ordered_alike(count: int) -> None:
    keys = np.random.default_rng(count).integers(0, 50, (3, count)).astype(np.float64)
    expected = [sorted(range(count), key=lambda at, row=row: -row[at]) for row in keys]
    assert longest_first(keys, 50).tolist() == expected
