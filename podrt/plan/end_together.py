"""Splitting decodes so that all slots end together."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.plan.cut import Cut, Side, cut_at, cut_steps, limit_for, limit_within, piece_keys
from podrt.plan.tiles import Floats, Indices, Tiles, longest_first

#: By what the limit that fills the slots once is multiplied or divided.
_FACTORS = (1, 2, 3, 4, 6, 8, 12, 16)
#: Tiles times limits that are tried in one go.
_BLOCK = 2048
#: So few tiles take hardly longer with all limits than with one.
_FEW = 128
#: For so many groups of layers, each planned by itself, something is kept from batch to batch.
_KEPT = 8
#: Of keys: more than what computing with ends rounds off.
_ROUNDING = 1e-3

#: Counts and lengths of a cut by a limit; None where that leaves all tiles whole.
_Trial = tuple[Floats, Floats] | None


def split_to_end_together(tiles: Tiles, side: Side, *, max_keys: int) -> Cut | None:
    """Cut tiles into pieces with which the slots end together: the longest that nearly do best.

    Where lengths differ, the longest requests are what the others would wait for. How soon a cut
    ends is estimated as its waves of units, longest first, with something for starting a unit and
    for merging the tile with the most pieces.

    Parameters
    ----------
    tiles : Tiles
        Tiles to cut.
    side : Side
        What they are cut for.
    max_keys : int
        No limit of a piece above this is tried, but to keep `side.max_partials`.
    """
    limits = _candidates(tiles, side, max_keys)
    if len(limits) == 1:
        return cut_at(tiles, limits[0])
    if len(tiles.keys) <= _FEW:
        memory = _memory(tiles.steps_bytes, tiles.kv_tile, limits, side)
        choice = memory.choice
        if choice is None or not choice.holds_for(tiles.keys):
            choice = memory.choice = _choose(tiles, side, limits, memory)
    else:
        choice = _choose(tiles, side, limits, None)
    return None if choice.trial is None else Cut(*choice.trial, choice.limit * tiles.kv_tile)


class _Choice(NamedTuple):
    """The limit that was chosen for some tiles, in KV tiles, and what it cuts them into.

    It holds as well for tiles of as many steps each of which has up to `most_growth` keys more: the
    first unit of a wave has at most so many more then, so ends are later by that times their waves.
    """

    limit: int
    trial: _Trial
    keys: Floats
    most_growth: float

    def holds_for(self, keys: Floats) -> bool:
        """Whether the same is chosen for tiles of so many keys, and of the same steps."""
        growth = keys - self.keys
        least: float = growth.item(growth.argmin())
        return least >= 0 and growth.item(growth.argmax()) <= self.most_growth


class _Memory:
    """The last choice, and the cuts by all limits that were tried for it, not to be changed."""

    choice: _Choice | None = None
    cuts: tuple[Floats, Floats] | None = None


@lru_cache(maxsize=_KEPT)  # few tiles often have as many steps as in the batch before
def _memory(steps: bytes, kv_tile: int, limits: tuple[int, ...], side: Side) -> _Memory:
    return _Memory()


def _choose(tiles: Tiles, side: Side, limits: tuple[int, ...], memory: _Memory | None) -> _Choice:
    near_best = side.costs.near_best
    trials: list[_Trial] = []
    ends: list[float] = []
    waves: list[float] = []
    if limits[0] >= tiles.longest_steps:
        trials.append(None)
        end, num_waves = _waves_end(tiles.falling_keys(), side)
        ends.append(end)
        waves.append(num_waves)
    chosen = 0
    block = len(limits) if memory else 1  # the first limit is often good enough
    # No later limit changes the choice once it is near the best that any of them can reach.
    while not ends or ends[chosen] > _earliest_end(tiles, side, limits[len(ends) :]) * near_best:
        tried = limits[len(ends) : len(ends) + block]
        counts, lengths, found, num_waves_found = _try(tiles, side, tried, memory)
        trials += zip(counts, lengths, strict=True)
        ends += found
        waves += num_waves_found
        while ends[chosen] > min(ends) * near_best:
            chosen += 1
        block = max(1, _BLOCK // len(tiles.keys))
    most_growth = _most_growth(ends, waves, chosen, near_best) if len(ends) == len(limits) else -1.0
    return _Choice(limits[chosen], trials[chosen], tiles.keys, most_growth)


def _most_growth(ends: list[float], waves: list[float], chosen: int, near_best: float) -> float:
    """Return by how many keys pieces can grow before another of the limits may be chosen."""
    best = ends.index(min(ends))
    growth = (ends[best] * near_best - ends[chosen]) / waves[chosen]
    if chosen:  # the limits before are to stay too late
        growth = min(growth, (min(ends[:chosen]) / near_best - ends[best]) / waves[best])
    return growth - _ROUNDING


def _candidates(tiles: Tiles, side: Side, max_keys: int) -> tuple[int, ...]:
    """Return the limits to try, in KV tiles, falling."""
    one_wave = limit_for(tiles, side, side.slots // side.units_per_tile)
    most = -(-max_keys // tiles.kv_tile)
    least = min(-(-side.min_keys // tiles.kv_tile), most)
    if side.max_partials is not None:
        least = max(least, limit_within(tiles, side.max_partials))
        most = max(least, most)
    whole = tiles.longest_steps
    return _around(one_wave, min(least, whole), min(most, whole))


@lru_cache(maxsize=4096)  # from one step of a server to the next they rarely change
def _around(one_wave: int, least: int, most: int) -> tuple[int, ...]:
    wanted = {-(-one_wave // factor) for factor in _FACTORS}
    wanted |= {one_wave * factor for factor in _FACTORS}
    return tuple(sorted({min(max(limit, least), most) for limit in wanted}, reverse=True))


def _earliest_end(tiles: Tiles, side: Side, limits: tuple[int, ...]) -> float:
    """Return an end, in keys, that no cut by any of the falling `limits` comes before."""
    if not limits:
        return math.inf
    longest, kv_tile, whole = tiles.longest, tiles.kv_tile, tiles.longest_steps
    # Shorter limits make shorter pieces, but no fewer of them and no fewer splits.
    fewest_pieces = max(len(tiles.keys), -(-tiles.total // (limits[0] * kv_tile)))
    waves = -(-fewest_pieces * side.units_per_tile // side.slots)
    splits = -(-whole // limits[0])
    merging = side.costs.split_keys * splits if splits > 1 else 0
    shortest_piece = min(longest, -(-whole // -(-whole // limits[-1])) * kv_tile)
    share_of_slot = tiles.total * side.units_per_tile / side.slots
    return max(share_of_slot, shortest_piece) + side.costs.start_keys * waves + merging


def _try(
    tiles: Tiles, side: Side, limits: tuple[int, ...], memory: _Memory | None
) -> tuple[Floats, Floats, list[float], list[float]]:
    """Return counts and lengths of the cuts by falling `limits`, ``[limits, tiles]``, and ends.

    An end is when the last slot ends, in keys; behind them are the waves of each limit. None of the
    limits leaves all tiles whole.
    """
    cuts = memory.cuts if memory else None
    if cuts is None:
        cuts = cut_steps(tiles.steps, _column(limits))
        if memory:
            memory.cuts = cuts
    counts, lengths = cuts
    pieces = piece_keys(tiles, lengths)
    order = longest_first(pieces, limits[0] * tiles.kv_tile)
    order += _beginnings(*pieces.shape)
    waves = np.add.accumulate(counts.take(order), 1)
    waves *= side.units_per_tile
    waves /= side.slots
    np.ceil(waves, waves)  # that have begun when the units of a tile and those before are taken
    num_waves = waves[:, -1].tolist()
    begun = waves
    begun[:, 1:] -= waves[:, :-1]
    # A wave takes as long as its first unit.
    begun *= pieces.take(order)
    keys = np.add.reduce(begun, 1).tolist()
    whole, costs = tiles.longest_steps, side.costs
    ends = [
        keys[i] + costs.start_keys * num_waves[i] + costs.split_keys * -(-whole // limit)
        for i, limit in enumerate(limits)
    ]
    return counts, lengths, ends, num_waves


@lru_cache(maxsize=256)
def _column(limits: tuple[int, ...]) -> Floats:
    return np.array(limits, np.float64)[:, None]


@lru_cache(maxsize=64)
def _beginnings(rows: int, columns: int) -> Indices:
    """Return where the rows of a matrix begin in memory, ``[rows, 1]``."""
    return np.arange(0, rows * columns, columns)[:, None]


def _waves_end(pieces: npt.NDArray[Any], side: Side) -> tuple[float, int]:
    """Return when the units of `pieces`, longest first, end, in keys, and in how many waves."""
    slots, units = side.slots, side.units_per_tile
    if slots % units:
        waves = pieces[_firsts_of_waves(len(pieces), units, slots)]
    else:
        waves = pieces[:: slots // units]
    return float(sum(waves.tolist())) + side.costs.start_keys * len(waves), len(waves)


@lru_cache(maxsize=256)
def _firsts_of_waves(pieces: int, units: int, slots: int) -> Indices:
    """Return the pieces that the first units of all waves belong to."""
    return np.arange(0, pieces * units, slots) // units
