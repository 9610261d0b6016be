"""Cutting tiles by one limit, and the limits that keep numbers of pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_support import (
    partials,
    pieces_of,
    side_of,
    slow_cut,
    slow_limit,
    tiles_of_keys,
)

from podrt.plan.cut import Cut, cut_at, cut_steps, limit_for, limit_within, num_partials

some_keys = st.lists(
    st.one_of(st.integers(0, 200), st.integers(0, 50_000)), min_size=1, max_size=12
)
kv_tiles = st.sampled_from([16, 32, 64, 192])


@given(keys=some_keys, kv_tile=kv_tiles, limit=st.integers(1, 1000))
def test_pieces_are_equal_and_no_longer_than_the_limit(
    keys: list[int], kv_tile: int, limit: int
) -> None:
    tiles = tiles_of_keys(keys, kv_tile)
    cut = cut_at(tiles, limit)
    assert pieces_of(tiles, cut) == slow_cut(keys, kv_tile, limit)
    if cut is not None:
        assert cut.lengths.max() * kv_tile <= cut.longest
    assert num_partials(cut) == partials(pieces_of(tiles, cut))


def test_places_count_pieces_and_split_tiles_before_each() -> None:
    places = Cut(np.array([1.0, 3.0, 2.0, 1.0]), np.array([4.0, 1.0, 2.0, 3.0]), 64).places
    assert (places.num_partials, places.num_split) == (5, 2)
    assert places.first_partial.tolist() == [0, 0, 3, 5]
    assert places.split_before.tolist() == [0, 0, 1, 2]
    assert places.tile.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert places.split.tolist() == [0, 0, 1, 2, 0, 1, 0]


@pytest.mark.parametrize("num_tiles", [3, 5000])
def test_places_are_those_of_the_counts_when_asked_again(num_tiles: int) -> None:
    lengths = np.ones(num_tiles)
    for first in (1.0, 2.0, 1.0):
        counts = np.full(num_tiles, 2.0)
        counts[0] = first
        places = Cut(counts, lengths, 64).places
        assert places.num_partials == counts.sum() - (first == 1)
        assert places.first_partial[-1] == places.num_partials - 2
        assert places.tile.tolist() == np.repeat(np.arange(num_tiles), counts.astype(int)).tolist()


def test_each_tile_may_have_a_limit_and_each_row_too() -> None:
    steps = np.array([10.0, 10.0])
    counts, lengths = cut_steps(steps, np.array([5.0, 3.0]))
    assert (counts.tolist(), lengths.tolist()) == ([2, 4], [5, 3])
    counts, lengths = cut_steps(steps, np.array([[5.0], [3.0]]))
    assert counts.tolist() == [[2, 2], [4, 4]]
    assert lengths.tolist() == [[5, 5], [3, 3]]


@pytest.mark.parametrize("keys", [2**31 - 1, 10**6])
def test_huge_lengths_are_cut_exactly(keys: int) -> None:
    tiles = tiles_of_keys([keys], 16)
    ((count, length),) = pieces_of(tiles, cut_at(tiles, limit_for(tiles, side_of(), 100)))
    assert 90 <= count <= 100
    assert (count - 1) * length * 16 < keys <= count * length * 16


@settings(deadline=None)
@given(
    keys=some_keys,
    kv_tile=kv_tiles,
    min_keys=st.sampled_from([1, 100, 512, 1024]),
    max_items=st.integers(0, 300),
)
def test_the_limit_is_the_smallest_with_so_few_pieces(
    keys: list[int], kv_tile: int, min_keys: int, max_items: int
) -> None:
    side = side_of(min_keys=min_keys)
    limit = limit_for(tiles_of_keys(keys, kv_tile), side, max_items)
    assert limit == slow_limit(keys, kv_tile, side, max_items)


@settings(deadline=None)
@given(keys=some_keys, kv_tile=kv_tiles, max_partials=st.integers(0, 300))
def test_the_limit_is_the_smallest_with_so_few_partial_results(
    keys: list[int], kv_tile: int, max_partials: int
) -> None:
    limit = limit_within(tiles_of_keys(keys, kv_tile), max_partials)
    assert partials(slow_cut(keys, kv_tile, limit)) <= max_partials
    assert limit == 1 or partials(slow_cut(keys, kv_tile, limit - 1)) > max_partials


def test_the_limits_of_many_tiles_are_found_too() -> None:
    keys = np.random.default_rng(0).integers(0, 20_000, 3000).tolist()
    tiles, side = tiles_of_keys(keys, 16), side_of(min_keys=100)
    for most in (3001, 3500, 20_000):
        assert limit_for(tiles, side, most) == slow_limit(keys, 16, side, most)
        limit = limit_within(tiles, most)
        assert partials(slow_cut(keys, 16, limit)) <= most
        assert partials(slow_cut(keys, 16, limit - 1)) > most


def test_any_limit_will_do_without_a_bound() -> None:
    assert limit_within(tiles_of_keys([5000], 16), None) == 1
