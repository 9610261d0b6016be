"""How keys are cut into work items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podrt.plan.split import (
    Side,
    Splits,
    split_for_waves,
    split_keys,
    split_to_end_together,
    split_to_fill_waves,
    taper,
)


def side_of(kv_tile: int, slots: int = 1, units: int = 1, *, min_keys: int = 1) -> Side:
    return Side(kv_tile, min_keys, units, slots)


def cut(
    keys: list[int], max_items: int, *, kv_tile: int = 16, min_keys: int = 64
) -> tuple[list[int], list[int]]:
    """Pieces and piece lengths of every tile."""
    splits = split_keys(
        np.array(keys, np.int64), side_of(kv_tile, min_keys=min_keys), max_items=max_items
    )
    return splits.counts.tolist(), splits.lengths.tolist()


def test_one_long_tile_gets_all_items() -> None:
    assert cut([1024], 8) == ([8], [128])


def test_long_tiles_are_cut_and_short_ones_are_not() -> None:
    counts, _ = cut([64, 1024, 128, 64], 10)
    assert counts == [1, 7, 1, 1]


def test_no_piece_is_cut_below_the_least_length() -> None:
    assert cut([256], 1000) == ([4], [64])
    assert cut([64], 1000) == ([1], [64])


def test_too_few_items_leave_every_tile_whole() -> None:
    assert cut([500, 500, 500], 2)[0] == [1, 1, 1]
    assert cut([500, 500, 500], 0)[0] == [1, 1, 1]


def test_tiles_without_keys_are_one_empty_piece() -> None:
    assert cut([0, 0], 5) == ([1, 1], [0, 0])


def test_no_tiles() -> None:
    assert cut([], 5) == ([], [])


@pytest.mark.parametrize("keys", [2**31 - 1, 10**6])
def test_huge_lengths_do_not_overflow(keys: int) -> None:
    counts, lengths = cut([keys], 100)
    assert 90 <= counts[0] <= 100
    assert (counts[0] - 1) * lengths[0] < keys <= counts[0] * lengths[0]


tile_keys = st.lists(st.one_of(st.integers(0, 200), st.integers(0, 50_000)), max_size=12)


@settings(deadline=None, max_examples=100)
@given(
    keys=tile_keys,
    kv_tile=st.sampled_from([16, 32, 64]),
    min_keys=st.sampled_from([1, 100, 512, 1024]),
    max_items=st.integers(0, 200),
)
def test_rules_hold_for_any_lengths(
    keys: list[int], kv_tile: int, min_keys: int, max_items: int
) -> None:
    tiles = np.array(keys, np.int64)
    splits = split_keys(tiles, side_of(kv_tile, min_keys=min_keys), max_items=max_items)
    counts, lengths = splits
    require_cover(tiles, splits, kv_tile)
    # Equal but for rounding to whole KV tiles.
    assert (counts * lengths < tiles + counts * kv_tile).all()
    assert (counts[tiles <= min_keys] == 1).all()
    if max_items >= len(keys):
        assert counts.sum() <= max_items
    else:
        assert (counts == 1).all()
    require_one_limit(tiles, splits, kv_tile)


def require_cover(tiles: np.ndarray, splits: Splits, kv_tile: int) -> None:
    """Every key is in a piece of whole KV tiles, and no piece is empty unless the tile is."""
    counts, lengths = splits
    assert (counts >= 1).all()
    assert (lengths % kv_tile == 0).all()
    assert (counts * lengths >= tiles).all()
    assert ((counts - 1) * lengths < np.maximum(tiles, 1)).all()


def require_one_limit(tiles: np.ndarray, splits: Splits, kv_tile: int) -> None:
    """No tile is cut while a longer piece than all of it is left whole."""
    is_cut = splits.counts > 1
    if is_cut.any():
        assert tiles[is_cut].min() > splits.lengths.max() - kv_tile


@given(
    keys=st.lists(st.integers(0, 5000), min_size=1, max_size=12),
    units_per_tile=st.integers(1, 8),
    slots=st.integers(1, 300),
)
def test_splits_for_waves_cover_every_tile(
    keys: list[int], units_per_tile: int, slots: int
) -> None:
    array = np.array(keys, np.int64)
    splits = split_for_waves(array, side_of(64, slots, units_per_tile))
    require_cover(array, splits, 64)
    if len(keys) * units_per_tile >= 0.8 * slots:
        assert (splits.counts == 1).all()


def test_splits_for_waves_fill_them() -> None:
    # 32 units on 264 slots: 8 pieces make 256 units, 97 % of a wave.
    keys = np.full(4, 16384, np.int64)
    splits = split_for_waves(keys, side_of(32, 264, 8))
    assert splits.counts.tolist() == [8] * 4


def cut_to_fill(keys: list[int], slots: int, units_per_tile: int = 1) -> Splits:
    side = side_of(64, slots, units_per_tile, min_keys=1024)
    return split_to_fill_waves(np.array(keys, np.int64), side)


def test_a_second_wave_that_is_nearly_empty_is_avoided() -> None:
    splits = cut_to_fill([8192] * 19, slots=132, units_per_tile=8)  # 152 units, 1.15 waves
    assert (splits.counts > 1).all()
    rounds = -(-int(splits.counts.sum()) * 8 // 132)
    assert rounds * splits.lengths.max() < 1.5 * 8192


def test_one_long_tile_at_the_end_is_cut() -> None:
    splits = cut_to_fill([16384] + [1000] * 100, slots=100)
    assert splits.counts[0] > 1
    assert set(splits.counts.tolist()[1:]) == {1}


@pytest.mark.parametrize("num_tiles", [0, 120, 132, 264, 1000])
def test_full_or_many_waves_are_left_as_they_are(num_tiles: int) -> None:
    assert set(cut_to_fill([8192] * num_tiles, slots=132).counts.tolist()) <= {1}


@settings(deadline=None)
@given(
    keys=st.lists(st.integers(0, 20_000), min_size=1, max_size=60),
    slots=st.integers(1, 100),
    units_per_tile=st.integers(1, 16),
)
def test_splits_to_fill_waves_cover_every_tile(
    keys: list[int], slots: int, units_per_tile: int
) -> None:
    splits = cut_to_fill(keys, slots, units_per_tile)
    require_cover(np.array(keys, np.int64), splits, 64)
    # A limit of 1024 may halve a tile of 1025 keys.
    assert ((splits.counts == 1) | (splits.lengths >= 512)).all()


def cut_together(keys: list[int], slots: int, units_per_tile: int = 1) -> Splits:
    side = side_of(64, slots, units_per_tile, min_keys=512)
    return split_to_end_together(np.array(keys, np.int64), side, max_keys=4096)


def test_few_tiles_give_every_slot_one_piece() -> None:
    splits = cut_together([8192] * 128, slots=264)
    assert set(splits.counts.tolist()) == {2}
    assert set(splits.lengths.tolist()) == {4096}


def test_many_long_tiles_are_cut_at_the_most_keys() -> None:
    splits = cut_together([16384] * 64, slots=264, units_per_tile=8)
    assert set(splits.counts.tolist()) == {4}


def test_pieces_that_fit_the_slots_in_whole_waves_are_left_as_they_are() -> None:
    splits = cut_together([4096] * 64, slots=264, units_per_tile=8)  # 512 units, two waves
    assert set(splits.counts.tolist()) == {1}


def test_one_long_tile_among_short_ones_does_not_make_all_wait() -> None:
    keys = [200] * 100 + [20_000]
    splits = cut_together(keys, slots=264, units_per_tile=8)
    fair_share = sum(keys) * 8 / 264
    assert splits.counts.tolist()[:100] == [1] * 100
    assert splits.lengths[100] <= 2 * fair_share


def test_a_merge_of_very_many_splits_costs_more_than_idle_slots() -> None:
    keys, slots = 131_072, 1000
    side = side_of(64, slots, min_keys=64)
    splits = split_to_end_together(np.array([keys], np.int64), side, max_keys=4096)
    # Pieces of 128 keys would fill the slots. Keys of a piece and splits to merge, 8 keys' worth
    # each, add up to the least at 128 splits.
    assert 64 <= splits.counts[0] <= 200


def test_nothing_to_cut() -> None:
    assert cut_together([], slots=264).counts.tolist() == []
    assert cut_together([0, 0], slots=264).counts.tolist() == [1, 1]


@settings(deadline=None)
@given(
    keys=st.lists(st.integers(0, 20_000), min_size=1, max_size=60),
    slots=st.integers(1, 300),
    units_per_tile=st.integers(1, 16),
)
def test_pieces_cover_their_tiles_within_the_limits(
    keys: list[int], slots: int, units_per_tile: int
) -> None:
    splits = cut_together(keys, slots, units_per_tile)
    require_cover(np.array(keys, np.int64), splits, 64)
    assert (splits.lengths <= 4096).all()
    # A limit of 512 may halve a tile of 513 keys.
    assert ((splits.counts == 1) | (splits.lengths >= 256)).all()


def tapered(keys: list[int], *, slots: int, units_per_tile: int = 1) -> Splits:
    """Pieces of at most 4096 keys, tapered."""
    lengths = np.array(keys, np.int64)
    splits = split_keys(lengths, side_of(128, min_keys=4096), max_items=10**6)
    return taper(splits, lengths, side_of(128, slots, units_per_tile, min_keys=512))


def test_the_last_quarter_is_cut_finer() -> None:
    splits = tapered([4096] * 64, slots=264, units_per_tile=8)
    assert sorted(splits.counts.tolist()) == [1] * 48 + [2] * 8 + [4] * 8
    assert (splits.counts * splits.lengths == 4096).all()


def test_no_more_is_cut_finer_than_fills_the_slots() -> None:
    splits = tapered([4096] * 3000, slots=300)
    assert (splits.counts > 1).sum() == 300


def test_short_pieces_at_the_end_are_fine_as_they_are() -> None:
    keys = [4096] * 60 + [500, 128, 0, 700]
    splits = tapered(keys, slots=264)
    assert splits.counts[60:].tolist() == [1, 1, 1, 1]
    assert splits.counts.max() == 4


@given(st.lists(st.integers(0, 20_000), max_size=40), st.integers(1, 300), st.integers(1, 8))
def test_tapered_pieces_cover_every_tile(keys: list[int], slots: int, units: int) -> None:
    splits = tapered(keys, slots=slots, units_per_tile=units)
    require_cover(np.array(keys, np.int64), splits, 128)
