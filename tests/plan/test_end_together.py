"""Decodes are cut so that all slots end together."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from split_support import (
    Pieces,
    partials,
    pieces_of,
    side_of,
    slow_end_together,
    tiles_of_keys,
)

from podrt.plan.end_together import split_to_end_together


def cut_together(
    keys: list[int],
    slots: int,
    units: int = 1,
    *,
    min_keys: int = 512,
    max_keys: int = 4096,
    max_partials: int | None = None,
) -> Pieces:
    """Pieces of 64 keys to a KV tile."""
    tiles = tiles_of_keys(keys, 64)
    side = side_of(slots, units, min_keys=min_keys, max_partials=max_partials)
    return pieces_of(tiles, split_to_end_together(tiles, side, max_keys=max_keys))


def test_few_tiles_give_every_slot_one_piece() -> None:
    assert set(cut_together([8192] * 128, slots=264)) == {(2, 64)}


def test_many_long_tiles_are_cut_at_the_most_keys() -> None:
    assert set(cut_together([16384] * 64, slots=264, units=8)) == {(4, 64)}


def test_pieces_that_fit_the_slots_in_whole_waves_are_left_as_they_are() -> None:
    assert set(cut_together([4096] * 64, slots=264, units=8)) == {(1, 64)}  # 512 units, two waves


def test_one_long_tile_among_short_ones_does_not_make_all_wait() -> None:
    keys = [200] * 100 + [20_000]
    pieces = cut_together(keys, slots=264, units=8)
    fair_share = sum(keys) * 8 / 264
    assert {count for count, _ in pieces[:100]} == {1}
    assert pieces[100][1] * 64 <= 2 * fair_share


def test_a_merge_of_very_many_splits_costs_more_than_idle_slots() -> None:
    ((count, _),) = cut_together([131_072], slots=1000, min_keys=64)
    # Pieces of 128 keys would fill the slots. Keys of a piece and splits to merge, 8 keys' worth
    # each, add up to the least at 128 splits.
    assert 64 <= count <= 200


def test_nothing_to_cut() -> None:
    assert cut_together([0, 0], slots=264) == [(1, 1), (1, 1)]


lengths = st.one_of(
    st.lists(st.integers(0, 20_000), min_size=1, max_size=60),
    st.lists(st.sampled_from([1, 1000, 5000, 200_000]), min_size=1, max_size=60),
    st.builds(lambda keys, tiles: [keys] * tiles, st.integers(0, 20_000), st.integers(1, 300)),
)


@settings(deadline=None, max_examples=300)
@given(
    keys=lengths,
    slots=st.one_of(st.integers(1, 300), st.sampled_from([264, 132])),
    units=st.integers(1, 16),
    min_keys=st.sampled_from([1, 384, 512]),
    max_keys=st.sampled_from([256, 4096, 8192, 10**6]),
)
def test_the_choice_is_that_of_trying_all_limits(
    keys: list[int], slots: int, units: int, min_keys: int, max_keys: int
) -> None:
    pieces = cut_together(keys, slots, units, min_keys=min_keys, max_keys=max_keys)
    side = side_of(slots, units, min_keys=min_keys)
    assert pieces == slow_end_together(keys, 64, side, max_keys)


def test_the_choice_among_many_tiles_is_that_of_trying_all_limits() -> None:
    keys = np.random.default_rng(0).integers(0, 9000, 2000).tolist()
    assert cut_together(keys, 264, 3) == slow_end_together(
        keys, 64, side_of(264, 3, min_keys=512), 4096
    )


@settings(deadline=None)
@given(keys=lengths, slots=st.integers(1, 300), max_partials=st.integers(0, 100))
def test_no_more_partial_results_than_allowed(
    keys: list[int], slots: int, max_partials: int
) -> None:
    assert partials(cut_together(keys, slots, max_partials=max_partials)) <= max_partials


def test_a_bound_makes_pieces_longer_rather_than_whole() -> None:
    free, bound = (cut_together([65_536] * 8, slots=264, max_partials=most) for most in (None, 70))
    assert partials(free) > 70
    assert 2 <= max(count for count, _ in bound) <= 8


@given(
    steps=st.lists(st.integers(1, 30), min_size=2, max_size=20),
    growths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    slots=st.integers(8, 150),
    units=st.sampled_from([1, 4, 8]),
)
@example(steps=[4, 16, 13, 6], growths=[19, 40, 40], slots=13, units=8)
@example(steps=[10, 13, 13, 6], growths=[20], slots=42, units=8)
@example(steps=[4, 9, 26, 7, 20], growths=[39, 40, 40], slots=34, units=8)
def test_a_choice_is_kept_only_as_long_as_it_would_be_made_again(
    steps: list[int], growths: list[int], slots: int, units: int
) -> None:
    side = side_of(slots, units, min_keys=64)
    keys = [128 * (n - 1) + 1 for n in steps]
    for growth in [0, *growths]:  # none begins another KV tile
        keys = [n + growth for n in keys]
        tiles = tiles_of_keys(keys, 128)
        cut = split_to_end_together(tiles, side, max_keys=4096)
        assert pieces_of(tiles, cut) == slow_end_together(keys, 128, side, 4096)
