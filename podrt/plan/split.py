"""How the keys of tiles are split into work items (split-KV)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


#: FlashAttention-2's constants: most splits of a tile, how full the GPU must be to need none, and
#: how near to the best wave efficiency is near enough.
_MAX_SPLITS, _BUSY_SHARE, _WAVE_SHARE = 128, 0.8, 0.85


class Splits(NamedTuple):
    """Splits of every tile: how many, and the keys of each but the last."""

    counts: Ints
    lengths: Ints

    @property
    def is_split(self) -> npt.NDArray[np.bool_]:
        """Which tiles have more than one piece, to be merged."""
        return self.counts > 1

    @property
    def partials(self) -> Ints:
        """Partial results of every tile: one for each piece, none for a tile in one piece."""
        return np.where(self.is_split, self.counts, 0)


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


def split_for_waves(keys: Ints, *, kv_tile: int, units_per_tile: int, slots: int) -> Splits:
    """Cut every tile into the same number of pieces, so that whole waves of them fill the GPU.

    FlashAttention-2's rule, which POD-Attention's unlimited splits follow: nothing is cut when 80 %
    of the slots are busy anyway; else the fewest pieces whose last wave is nearly as full (85 %) as
    that of the best number.

    Parameters
    ----------
    keys : int array [tiles]
        Keys of every tile.
    kv_tile : int
        Pieces are multiples of it, but for the last of a tile.
    units_per_tile : int
        Units that one piece of a tile makes (its KV heads).
    slots : int
        Units that run at once.
    """
    most = min(_MAX_SPLITS, slots, -(-int(keys.max(initial=1)) // kv_tile))
    number = _wave_filling_number(len(keys) * units_per_tile, slots, most)
    lengths = np.maximum(-(-keys // (number * kv_tile)) * kv_tile, kv_tile)
    counts: Ints = np.maximum(-(-keys // lengths), 1)
    return Splits(counts, lengths)


def _wave_filling_number(units: int, slots: int, most: int) -> int:
    if units == 0 or units >= _BUSY_SHARE * slots:
        return 1
    numbers = np.arange(1, most + 1)
    waves = units * numbers / slots
    efficiency = waves / np.ceil(waves)
    return int(numbers[np.argmax(efficiency >= _WAVE_SHARE * efficiency.max())])


def _counts(keys: Ints, limit: int) -> Ints:
    counts: Ints = np.maximum(-(-keys // limit), 1)
    return counts
