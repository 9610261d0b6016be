"""Splitting to use idle slots, to fill waves, to taper off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_support import (
    Pieces,
    partials,
    pieces_of,
    side_of,
    slow_fill_waves,
    slow_taper,
    tiles_of_keys,
)

from podrt.plan.cut import Side
from podrt.plan.split import split_for_waves, split_keys, split_to_fill_waves, taper

some_keys = st.lists(
    st.one_of(st.integers(0, 200), st.integers(0, 50_000)), min_size=1, max_size=12
)


def cut(
    keys: list[int],
    max_items: int,
    *,
    kv_tile: int = 16,
    min_keys: int = 64,
    max_partials: int | None = None,
) -> Pieces:
    tiles = tiles_of_keys(keys, kv_tile)
    side = side_of(min_keys=min_keys, max_partials=max_partials)
    return pieces_of(tiles, split_keys(tiles, side, max_items=max_items))


def test_one_long_tile_gets_all_items() -> None:
    assert cut([1024], 8) == [(8, 8)]


def test_long_tiles_are_cut_and_short_ones_are_not() -> None:
    assert [count for count, _ in cut([64, 1024, 128, 64], 10)] == [1, 7, 1, 1]


def test_no_piece_is_cut_below_the_least_length() -> None:
    assert cut([256], 1000) == [(4, 4)]
    assert cut([64], 1000) == [(1, 4)]


@pytest.mark.parametrize("max_items", [0, 2])
def test_too_few_items_leave_every_tile_whole(max_items: int) -> None:
    assert {count for count, _ in cut([500, 500, 500], max_items)} == {1}


def test_tiles_without_keys_are_one_piece() -> None:
    assert cut([0, 0], 5) == [(1, 1), (1, 1)]


def test_a_bound_on_partial_results_makes_fewer_pieces() -> None:
    assert cut([1024, 100], 20, max_partials=5) == [(5, 13), (1, 7)]
    assert cut([1024, 100], 20, max_partials=1) == [(1, 64), (1, 7)]


@settings(deadline=None, max_examples=100)
@given(
    keys=some_keys,
    kv_tile=st.sampled_from([16, 32, 64]),
    min_keys=st.sampled_from([1, 100, 512, 1024]),
    max_items=st.integers(0, 200),
)
def test_rules_hold_for_any_lengths(
    keys: list[int], kv_tile: int, min_keys: int, max_items: int
) -> None:
    pieces = cut(keys, max_items, kv_tile=kv_tile, min_keys=min_keys)
    require_cover(keys, pieces, kv_tile)
    counts = [count for count, _ in pieces]
    # Equal but for rounding to whole KV tiles.
    for num_keys, (count, length) in zip(keys, pieces, strict=True):
        assert count * length * kv_tile < max(num_keys, 1) + count * kv_tile
        assert count == 1 or num_keys > min_keys
    assert sum(counts) <= max_items or set(counts) == {1}
    require_one_limit(keys, pieces, kv_tile)


def require_cover(keys: list[int], pieces: Pieces, kv_tile: int) -> None:
    """Every key is in a piece, and no piece is empty unless the tile is."""
    for num_keys, (count, length) in zip(keys, pieces, strict=True):
        assert count >= 1
        assert (count - 1) * length * kv_tile < max(num_keys, 1)
        assert num_keys <= count * length * kv_tile


def require_one_limit(keys: list[int], pieces: Pieces, kv_tile: int) -> None:
    """No tile is cut while a longer piece than all of it is left whole."""
    longest = max(length for _, length in pieces) * kv_tile
    for num_keys, (count, _) in zip(keys, pieces, strict=True):
        assert count == 1 or num_keys > longest - kv_tile


def cut_for_waves(
    keys: list[int], slots: int, units: int, kv_tile: int, max_partials: int | None = None
) -> Pieces:
    tiles = tiles_of_keys(keys, kv_tile)
    return pieces_of(
        tiles, split_for_waves(tiles, side_of(slots, units, max_partials=max_partials))
    )


@given(
    keys=st.lists(st.integers(0, 5000), min_size=1, max_size=12),
    units=st.integers(1, 8),
    slots=st.integers(1, 300),
    max_partials=st.one_of(st.none(), st.integers(0, 60)),
)
def test_splits_for_waves_cover_every_tile(
    keys: list[int], units: int, slots: int, max_partials: int | None
) -> None:
    pieces = cut_for_waves(keys, slots, units, 64, max_partials)
    require_cover(keys, pieces, 64)
    if len(keys) * units >= 0.8 * slots:
        assert {count for count, _ in pieces} == {1}
    if max_partials is not None:
        assert partials(pieces) <= max_partials


def test_splits_for_waves_fill_them() -> None:
    # 32 units on 264 slots: 8 pieces make 256 units, 97 % of a wave.
    assert cut_for_waves([16384] * 4, 264, 8, 32) == [(8, 64)] * 4
    assert cut_for_waves([16384] * 4, 264, 8, 32, max_partials=20) == [(5, 103)] * 4


def cut_to_fill(
    keys: list[int], slots: int, units: int = 1, *, max_partials: int | None = None
) -> Pieces:
    tiles = tiles_of_keys(keys, 64)
    side = side_of(slots, units, min_keys=1024, max_partials=max_partials)
    return pieces_of(tiles, split_to_fill_waves(tiles, side))


def test_a_second_wave_that_is_nearly_empty_is_avoided() -> None:
    pieces = cut_to_fill([8192] * 19, slots=132, units=8)  # 152 units, 1.15 waves
    assert min(count for count, _ in pieces) > 1
    rounds = -(-sum(count for count, _ in pieces) * 8 // 132)
    assert rounds * max(length for _, length in pieces) * 64 < 1.5 * 8192


def test_one_long_tile_at_the_end_is_cut() -> None:
    pieces = cut_to_fill([16384] + [1000] * 100, slots=100)
    assert pieces[0][0] > 1
    assert {count for count, _ in pieces[1:]} == {1}


@pytest.mark.parametrize("num_tiles", [120, 132, 264, 1000])
def test_full_or_many_waves_are_left_as_they_are(num_tiles: int) -> None:
    assert {count for count, _ in cut_to_fill([8192] * num_tiles, slots=132)} == {1}


waves_keys = st.one_of(
    st.lists(st.integers(0, 20_000), min_size=1, max_size=60),
    st.builds(lambda keys, tiles: [keys] * tiles, st.integers(1, 20_000), st.integers(1, 60)),
)


@settings(deadline=None, max_examples=200)
@given(keys=waves_keys, slots=st.integers(1, 100), units=st.integers(1, 16))
def test_the_choice_for_full_waves_is_that_of_trying_all(
    keys: list[int], slots: int, units: int
) -> None:
    expected = slow_fill_waves(keys, 64, side_of(slots, units, min_keys=1024))
    assert cut_to_fill(keys, slots, units) == expected


@settings(deadline=None)
@given(keys=waves_keys, slots=st.integers(1, 100), max_partials=st.integers(0, 60))
def test_waves_are_filled_with_no_more_partial_results_than_allowed(
    keys: list[int], slots: int, max_partials: int
) -> None:
    free, bound = cut_to_fill(keys, slots), cut_to_fill(keys, slots, max_partials=max_partials)
    assert partials(bound) <= max_partials
    if partials(free) <= max_partials:
        assert bound == free


def tapered(keys: list[int], side: Side) -> Pieces:
    """Pieces of at most 4096 keys, of 128 to a KV tile, tapered."""
    tiles = tiles_of_keys(keys, 128)
    before = split_keys(tiles, side_of(min_keys=4096), max_items=10**6)
    pieces = pieces_of(tiles, taper(tiles, side, before))
    if side.max_partials is None:
        assert pieces == slow_taper(keys, 128, side, pieces_of(tiles, before))
    return pieces


def test_the_last_quarter_is_cut_finer() -> None:
    pieces = tapered([4096] * 64, side_of(264, 8, min_keys=512))
    assert sorted(pieces) == [(1, 32)] * 48 + [(2, 16)] * 8 + [(4, 8)] * 8


def test_no_more_is_cut_finer_than_fills_the_slots() -> None:
    pieces = tapered([4096] * 3000, side_of(300, min_keys=512))
    assert sum(count > 1 for count, _ in pieces) == 300


def test_short_pieces_at_the_end_are_fine_as_they_are() -> None:
    pieces = tapered([4096] * 60 + [500, 128, 0, 700], side_of(264, min_keys=512))
    assert {count for count, _ in pieces[60:]} == {1}
    assert max(count for count, _ in pieces) == 4


def test_nothing_is_tapered_that_needs_more_partial_results_than_allowed() -> None:
    for most, longest in ((48, 4), (47, 1)):  # 8 tiles in 2 pieces and 8 in 4
        side = side_of(264, 8, min_keys=512, max_partials=most)
        assert max(count for count, _ in tapered([4096] * 64, side)) == longest


@settings(deadline=None)
@given(
    keys=st.lists(st.integers(0, 20_000), min_size=1, max_size=40),
    slots=st.integers(1, 300),
    units=st.integers(1, 8),
    min_keys=st.sampled_from([1, 384, 512]),
)
def test_tapering_follows_its_rule_and_covers_every_tile(
    keys: list[int], slots: int, units: int, min_keys: int
) -> None:
    require_cover(keys, tapered(keys, side_of(slots, units, min_keys=min_keys)), 128)


def test_ties_are_tapered_in_the_order_of_the_tiles() -> None:
    tiles = tiles_of_keys([4096] * 64, 128)
    cut = taper(tiles, side_of(264, 8, min_keys=512), None)
    assert cut is not None
    assert np.flatnonzero(cut.counts > 1).tolist() == list(range(48, 64))
