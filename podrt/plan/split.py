"""How the keys of tiles are split into work items (split-KV)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


#: FlashAttention-2's constants: most splits of a tile, how full the GPU must be to need none, and
#: how near to the best wave efficiency is near enough.
_MAX_SPLITS, _BUSY_SHARE, _WAVE_SHARE = 128, 0.8, 0.85


#: Of `split_to_end_together`: by what it multiplies or divides the limit that fills the slots once;
#: what starting a unit and merging one more split of a tile cost, in keys; how near to the best end
#: is near enough.
_FACTORS, _START_KEYS, _SPLIT_KEYS, _NEAR_BEST = (1, 2, 3, 4, 6, 8, 12, 16), 128, 8, 1.08


#: Of `split_to_fill_waves`: beyond so many waves the last one matters little; what merging a piece
#: costs in keys, and the share of the time that cutting must save.
_MANY_WAVES, _MERGE_KEYS, _WORTH_CUTTING = 6, 256, 0.88


#: Of `taper`: it cuts no more than one key of so many finer.
_MOST_TAPERED = 4


class Side(NamedTuple):
    """How tiles of one side are cut, and what runs the units that come of it.

    Attributes
    ----------
    kv_tile : int
        Pieces are multiples of it, but for the last of a tile.
    min_keys : int
        No limit of a piece below this is tried.
    units_per_tile : int
        Units that one piece of a tile makes (its KV heads).
    slots : int
        Units that run at once.
    """

    kv_tile: int
    min_keys: int
    units_per_tile: int
    slots: int


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


def split_keys(keys: Ints, side: Side, *, max_items: int) -> Splits:
    """Cut tiles into pieces of about the same length, as short as `max_items` allows.

    One length limit serves all tiles, so that long requests are cut and short ones are not, and
    the pieces of one tile are equal but for rounding.

    Parameters
    ----------
    keys : int array [tiles]
        Keys of every tile; 0 is fine and gives one empty piece.
    side : Side
        What the tiles are cut for.
    max_items : int
        Most pieces in all; a tile always has at least one.
    """
    return _cut(keys, side.kv_tile, _limit_for(keys, side, max_items))


def split_to_end_together(keys: Ints, side: Side, *, max_keys: int) -> Splits:
    """Cut tiles into pieces with which the slots end together: the longest that nearly do best.

    Where lengths differ, the longest requests are what the others would wait for. How soon a cut
    ends is estimated as its waves of units, longest first, with something for starting a unit and
    for merging the tile with the most pieces.

    Parameters
    ----------
    keys : int array [tiles]
        Keys of every tile; 0 is fine and gives one empty piece.
    side : Side
        What the tiles are cut for.
    max_keys : int
        No limit of a piece above this is tried.
    """
    one_wave = _limit_for(keys, side, side.slots // side.units_per_tile)
    least, most = -(-side.min_keys // side.kv_tile), -(-max_keys // side.kv_tile)
    wanted = {-(-one_wave // factor) for factor in _FACTORS} | {one_wave * f for f in _FACTORS}
    limits = {min(max(limit, least), most) for limit in wanted}
    cuts = [_cut(keys, side.kv_tile, limit) for limit in sorted(limits, reverse=True)]
    ends = [_estimated_end(cut, keys, side) for cut in cuts]
    near_best = min(ends) * _NEAR_BEST
    return next(cut for cut, end in zip(cuts, ends, strict=True) if end <= near_best)


def split_to_fill_waves(keys: Ints, side: Side) -> Splits:
    """Cut the longest tiles where whole ones would leave many slots idle at the end.

    A split costs writing and merging partial results, so tiles stay whole unless cutting ends a
    good deal sooner. Slots are taken to draw from a queue, longest piece first.

    Parameters
    ----------
    keys : int array [tiles]
        Keys of every tile.
    side : Side
        What the tiles are cut for.
    """
    kv_tile = side.kv_tile
    longest = int(keys.max(initial=1))
    whole = _cut(keys, kv_tile, -(-longest // kv_tile))
    if len(keys) * side.units_per_tile > _MANY_WAVES * side.slots:
        return whole
    limits = [-(-longest // (number * kv_tile)) for number in range(2, 6)]
    allowed = [limit for limit in limits if limit * kv_tile >= side.min_keys]
    cuts = [whole] + [_cut(keys, kv_tile, limit) for limit in allowed]
    ends = [_queue_end(cut, keys, side) for cut in cuts]
    best = int(np.argmin(ends))
    return cuts[best] if ends[best] <= _WORTH_CUTTING * ends[0] else whole


def _queue_end(cut: Splits, keys: Ints, side: Side) -> int:
    """Return when the last slot ends that takes from a queue, longest piece first, in keys."""
    costs = np.minimum(cut.lengths, keys) + _START_KEYS + np.where(cut.is_split, _MERGE_KEYS, 0)
    pieces = np.sort(np.repeat(costs, cut.counts * side.units_per_tile))[::-1]
    ends = np.zeros(side.slots, np.int64)
    for first in range(0, len(pieces), side.slots):  # pieces of a round are about the same length
        ends.sort()
        taken = pieces[first : first + side.slots]
        ends[: len(taken)] += taken
    return int(ends.max())


def taper(splits: Splits, keys: Ints, side: Side) -> Splits:
    """Cut what is handed out last finer, so that no slot is left with a long piece at the end.

    Pieces are handed out longest first. The last ones, as many as there are slots but no more than
    a quarter of the keys, get at most half the longest length, and half of them a quarter.

    Parameters
    ----------
    splits : Splits
        As the other functions here make them.
    keys : int array [tiles]
        Keys of every tile.
    side : Side
        What the tiles are cut for.
    """
    pieces = np.minimum(splits.lengths, keys)
    longest, total = int(pieces.max(initial=1)), int(keys.sum())
    order = np.argsort(-pieces, kind="stable")
    left = np.empty_like(keys)  # keys handed out after a tile's
    left[order] = total - np.cumsum(keys[order])
    units = max(int(splits.counts.sum()) * side.units_per_tile, 1)
    last = min(total // _MOST_TAPERED, side.slots * total // units)
    divisor = np.where(left >= last, 1, np.where(left >= last // 2, 2, 4))
    limit = np.minimum(np.maximum(longest // divisor, side.min_keys), splits.lengths)
    return _cut(keys, side.kv_tile, np.maximum(limit // side.kv_tile, 1))


def split_for_waves(keys: Ints, side: Side) -> Splits:
    """Cut every tile into the same number of pieces, so that whole waves of them fill the GPU.

    FlashAttention-2's rule, which POD-Attention's unlimited splits follow: nothing is cut when 80 %
    of the slots are busy anyway; else the fewest pieces whose last wave is nearly as full (85 %) as
    that of the best number.

    Parameters
    ----------
    keys : int array [tiles]
        Keys of every tile.
    side : Side
        What the tiles are cut for; this rule has no shortest piece.
    """
    kv_tile = side.kv_tile
    most = min(_MAX_SPLITS, side.slots, -(-int(keys.max(initial=1)) // kv_tile))
    number = _wave_filling_number(len(keys) * side.units_per_tile, side.slots, most)
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


def _limit_for(keys: Ints, side: Side, max_items: int) -> int:
    """Return the smallest limit, in KV tiles, that makes no more than `max_items` pieces."""
    longest = int(keys.max(initial=1))
    low = -(-min(side.min_keys, longest) // side.kv_tile)
    high = max(low, -(-longest // side.kv_tile))
    # The number of pieces falls as the limit grows: bisect for the smallest limit that is enough.
    while low < high:
        middle = (low + high) // 2
        if int(_counts(keys, middle * side.kv_tile).sum()) <= max_items:
            high = middle
        else:
            low = middle + 1
    return low


def _cut(keys: Ints, kv_tile: int, limit: int | Ints) -> Splits:
    """Cut every tile into equal pieces of at most `limit` KV tiles, one for all or one for each."""
    counts = _counts(keys, limit * kv_tile)
    return Splits(counts, -(-keys // (counts * kv_tile)) * kv_tile)


def _estimated_end(cut: Splits, keys: Ints, side: Side) -> float:
    """Return when the last slot ends, in keys."""
    pieces = np.sort(np.repeat(np.minimum(cut.lengths, keys), cut.counts))[::-1]
    firsts_of_waves = np.arange(0, len(pieces) * side.units_per_tile, side.slots)
    firsts_of_waves //= side.units_per_tile
    merging = _SPLIT_KEYS * int(cut.partials.max(initial=0))
    return float(pieces[firsts_of_waves].sum() + _START_KEYS * len(firsts_of_waves) + merging)


def _counts(keys: Ints, limit: int | Ints) -> Ints:
    counts: Ints = np.maximum(-(-keys // limit), 1)
    return counts
