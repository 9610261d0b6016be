"""`Cut`: how the keys of tiles are divided into pieces (split-KV), and the limits that do it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from podrt.plan.places import Places, places_of
from podrt.plan.tiles import Floats, Tiles
from podrt.plan.tiling import SplitCosts

#: Numbers of pieces that `_smallest` computes in one go.
_BLOCK = 4096


class Side(NamedTuple):
    """What the tiles of one side are cut for.

    Attributes
    ----------
    min_keys : int
        No limit of a piece below this is tried.
    units_per_tile : int
        Units that one piece of a tile makes (its KV heads).
    slots : int
        Units that run at once.
    costs : SplitCosts
        What the rules weigh.
    max_partials : int or None
        Most partial results: pieces of tiles that have more than one. None sets no bound.
    """

    min_keys: int
    units_per_tile: int
    slots: int
    costs: SplitCosts
    max_partials: int | None = None


class Cut:
    """Pieces of every tile; in place of one, None stands for whole tiles.

    Attributes
    ----------
    counts : float64 array [tiles]
        Pieces of every tile.
    lengths : float64 array [tiles]
        KV tiles of each piece but the last.
    longest : int
        No piece has more keys.
    """

    __slots__ = ("_places", "counts", "lengths", "longest")

    def __init__(self, counts: Floats, lengths: Floats, longest: int) -> None:
        self.counts, self.lengths, self.longest = counts, lengths, longest
        self._places: Places | None = None

    @property
    def places(self) -> Places:
        """Where the pieces of every tile are among those of all."""
        if self._places is None:
            self._places = places_of(self.counts)
        return self._places


def cut_steps(steps: Floats, limit: float | Floats) -> tuple[Floats, Floats]:
    """Return counts and lengths of equal pieces of at most `limit` KV tiles.

    Parameters
    ----------
    steps : float64 array [tiles]
        KV tiles of every tile.
    limit : float or float64 array
        One for all, one for each, or ``[limits, 1]`` for a row of results for each limit.
    """
    counts = steps / limit
    np.ceil(counts, counts)
    lengths = steps / counts
    np.ceil(lengths, lengths)
    return counts, lengths


def cut_at(tiles: Tiles, limit: int) -> Cut | None:
    """Cut every tile into equal pieces of at most `limit` KV tiles."""
    if limit >= tiles.longest_steps:
        return None
    return Cut(*cut_steps(tiles.steps, limit), limit * tiles.kv_tile)


def piece_keys(tiles: Tiles, lengths: Floats) -> Floats:
    """Return the keys of the longest piece of every tile, given the KV tiles of a piece."""
    keys = lengths * tiles.kv_tile
    np.minimum(keys, tiles.keys, out=keys)
    return keys


def num_partials(cut: Cut | None) -> int:
    """Return the pieces of split tiles, each of which leaves a partial result."""
    return 0 if cut is None else cut.places.num_partials


def limit_for(tiles: Tiles, side: Side, max_items: int) -> int:
    """Return the smallest limit, in KV tiles, that makes no more than `max_items` pieces.

    A limit that leaves all tiles whole if there are more tiles than that.
    """
    longest, kv_tile = tiles.longest, tiles.kv_tile
    low = -(-min(side.min_keys, longest) // kv_tile)
    high = max(low, tiles.longest_steps)
    spare = max_items - len(tiles.keys)
    if spare <= 0:
        return high
    # total / limit <= pieces < total / limit + tiles
    low = min(max(low, -(-tiles.total // (max_items * kv_tile))), high)
    high = max(min(high, -(-tiles.total // (spare * kv_tile))), low)
    return _smallest(tiles, low, high, max_items)


def limit_within(tiles: Tiles, max_partials: int | None) -> int:
    """Return the smallest limit, in KV tiles, that leaves no more than so many partial results."""
    if max_partials is None:
        return 1
    # total / limit - tiles <= partial results
    low = max(1, tiles.total // ((max_partials + len(tiles.keys)) * tiles.kv_tile))
    return _smallest(tiles, low, max(low, tiles.longest_steps), max_partials, whole_costs=0)


def _smallest(tiles: Tiles, low: int, high: int, most: int, *, whole_costs: int = 1) -> int:
    """Return the smallest limit from `low` to `high` with at most so many pieces, or `high`.

    Whole tiles count as one piece or none. The number of pieces falls as the limit grows.
    """
    if low < high and (high - low) * len(tiles.keys) <= _BLOCK:
        return _smallest_of_few(tiles.steps_bytes, low, high, most, whole_costs)
    steps = tiles.steps
    while low < high:
        middle = (low + high) // 2
        if _num_pieces(steps, middle, whole_costs) <= most:
            high = middle
        else:
            low = middle + 1
    return low


@lru_cache(maxsize=8)  # few tiles often have as many steps as in the batch before
def _smallest_of_few(steps: bytes, low: int, high: int, most: int, whole_costs: int) -> int:
    """Try all limits at once."""
    limits = np.arange(low, high, dtype=np.float64)
    enough = _num_pieces(np.frombuffer(steps), limits[:, None], whole_costs) <= most
    first = int(enough.argmax())
    return low + first if enough[first] else high


def _num_pieces(steps: Floats, limit: int | Floats, whole_costs: int) -> Floats:
    counts = steps / limit
    np.ceil(counts, counts)
    if not whole_costs:
        counts *= counts > 1
    pieces: Floats = np.add.reduce(counts, -1)
    return pieces
