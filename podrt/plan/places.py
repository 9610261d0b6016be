"""`Places`: where the pieces of a cut are among those of all tiles; follows from their counts.

From one step of a server to the next, most decodes stay in as many pieces as they were, so the last
answers are kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from podrt.plan.tiles import Floats, Indices

#: Answers for more tiles are not kept: they are large, and seldom asked for twice.
_MOST_KEPT = 4096


class Places(NamedTuple):
    """Where the pieces of every tile of a cut are among those of all; arrays are read-only.

    Attributes
    ----------
    num_partials : int
        Pieces of split tiles, each of which leaves a partial result.
    num_split : int
        Split tiles.
    counts : float64 array [tiles]
        Pieces of every tile.
    first_partial : float64 array [tiles]
        Partial results of the tiles before each.
    split_before : float64 array [tiles]
        Split tiles before each.
    tile, split : int array and float64 array [pieces]
        The tile of every piece, and which of its pieces it is.
    """

    num_partials: int
    num_split: int
    counts: Floats
    first_partial: Floats
    split_before: Floats
    tile: Indices
    split: Floats


def places_of(counts: Floats) -> Places:
    """Return where the pieces of at least one tile are, given how many each has."""
    return _kept(counts.tobytes()) if len(counts) <= _MOST_KEPT else _places(counts)


@lru_cache(maxsize=16)
def _kept(counts: bytes) -> Places:
    return _places(np.frombuffer(counts))


def _places(counts: Floats) -> Places:
    num_tiles = len(counts)
    num_pieces, first_piece = _running_sum(counts)
    num_split, split_before = _running_sum((counts > 1.0).astype(np.float64))
    numbers = np.arange(num_tiles)
    tile = numbers.repeat(counts.astype(np.intp))
    split = np.arange(num_pieces, dtype=np.float64)
    split -= first_piece[tile]
    # Tiles in one piece leave no partial result: of the pieces before, those of split tiles count.
    first_partial = first_piece - numbers
    first_partial += split_before
    for array in (first_partial, split_before, tile, split):
        array.setflags(write=False)
    num_partials = num_pieces - num_tiles + num_split
    return Places(num_partials, num_split, counts, first_partial, split_before, tile, split)


def _running_sum(values: Floats) -> tuple[int, Floats]:
    """Return the sum of whole numbers, and of those before each."""
    before = np.add.accumulate(values)
    total = int(before[-1])
    before -= values
    return total, before
