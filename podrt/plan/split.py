"""How the keys of tiles are split into work items (split-KV)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Splits(NamedTuple):
    """Splits of every tile: how many, and the keys of each but the last."""

    counts: Ints
    lengths: Ints


def split_keys(keys: Ints, *, kv_tile: int, min_keys: int, max_items: int) -> Splits:
    """Cut tiles into pieces of about the same length, as short as `max_items` allows.

    One length limit serves all tiles, so that long requests are cut and short ones are not, and
    the pieces of one tile are equal but for rounding.

    Parameters
    ----------
    keys : int array [tiles]
        Keys of every tile; 0 is fine and gives one empty piece.
    kv_tile : int
        Pieces are multiples of it, but for the last of a tile.
    min_keys : int
        No limit below this is tried.
    max_items : int
        Most pieces in all; a tile always has at least one.
    """
    longest = int(keys.max(initial=1))
    low = -(-min(min_keys, longest) // kv_tile)
    high = max(low, -(-longest // kv_tile))
    # The number of pieces falls as the limit grows: bisect for the smallest limit that is enough.
    while low < high:
        middle = (low + high) // 2
        if int(_counts(keys, middle * kv_tile).sum()) <= max_items:
            high = middle
        else:
            low = middle + 1
    counts = _counts(keys, low * kv_tile)
    lengths = -(-keys // (counts * kv_tile)) * kv_tile
    return Splits(counts, lengths)


def _counts(keys: Ints, limit: int) -> Ints:
    counts: Ints = np.maximum(-(-keys // limit), 1)
    return counts
