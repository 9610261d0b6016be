"""The other rules by which tiles are split: to use idle slots, to fill waves, to taper off."""

from __future__ import annotations

import math

import numpy as np

from podrt.plan.cut import (
    Cut,
    Side,
    cut_at,
    cut_steps,
    limit_for,
    limit_within,
    num_partials,
    piece_keys,
)
from podrt.plan.tiles import Floats, Tiles, longest_first

#: FlashAttention-2's constants: most splits of a tile, how full the GPU must be to need none, and
#: how near to the best wave efficiency is near enough.
MAX_SPLITS, _BUSY_SHARE, _WAVE_SHARE = 128, 0.8, 0.85
#: Of `split_to_fill_waves`: beyond so many waves the last one matters little; most pieces of the
#: longest tile.
MANY_WAVES, MOST_PIECES = 6, 5
#: Of `taper`: it cuts no more than one key of so many finer.
_MOST_TAPERED = 4


def split_keys(tiles: Tiles, side: Side, *, max_items: int) -> Cut | None:
    """Cut tiles into pieces of about the same length, as short as `max_items` allows.

    One length limit serves all tiles, so that long requests are cut and short ones are not, and
    the pieces of one tile are equal but for rounding.

    Parameters
    ----------
    tiles : Tiles
        Tiles to cut.
    side : Side
        What they are cut for.
    max_items : int
        Most pieces in all; a tile always has at least one.
    """
    limit = limit_for(tiles, side, max_items)
    return cut_at(tiles, max(limit, limit_within(tiles, side.max_partials)))


def split_for_waves(tiles: Tiles, side: Side) -> Cut | None:
    """Cut every tile into the same number of pieces, so that whole waves of them fill the GPU.

    FlashAttention-2's heuristic, as POD-Attention found it: the smallest number with an efficiency
    of waves near that of the best number.

    Parameters
    ----------
    tiles : Tiles
        Tiles to cut.
    side : Side
        What they are cut for; this rule has no shortest piece.
    """
    number = _wave_filling_number(
        len(tiles.keys) * side.units_per_tile,
        side.slots,
        min(MAX_SPLITS, side.slots, tiles.longest_steps),
    )
    if side.max_partials is not None:
        number = min(number, side.max_partials // len(tiles.keys))
    if number <= 1:
        return None
    lengths = np.ceil(tiles.steps / number)
    return Cut(np.ceil(tiles.steps / lengths), lengths, tiles.longest)


def split_to_fill_waves(tiles: Tiles, side: Side) -> Cut | None:
    """Cut the longest tiles where whole ones would leave many slots idle at the end.

    A split costs writing and merging partial results, so tiles stay whole unless cutting ends a
    good deal sooner. Slots are taken to draw from a queue, longest piece first.

    Parameters
    ----------
    tiles : Tiles
        Tiles to cut.
    side : Side
        What they are cut for.
    """
    units, slots, kv_tile = side.units_per_tile, side.slots, tiles.kv_tile
    halves = -(-tiles.longest // (2 * kv_tile))
    if halves * kv_tile < side.min_keys or len(tiles.keys) * units > MANY_WAVES * slots:
        return None
    numbers, costs_of = range(2, MOST_PIECES + 1), side.costs
    limits = [-(-tiles.longest // (number * kv_tile)) for number in numbers]
    limits = [limit for limit in limits if limit * kv_tile >= side.min_keys]
    whole_costs = tiles.falling_keys() + costs_of.start_keys
    latest = costs_of.worth_cutting * _queue_end(whole_costs.repeat(units), slots)
    # No cut ends before all slots would that share the keys evenly.
    if float(np.add.reduce(whole_costs)) * units / slots > latest:
        return None
    best, best_end = None, np.inf
    for limit in limits:
        cut = cut_at(tiles, limit)
        if cut is None or not _fits(cut, side):
            continue
        costs = piece_keys(tiles, cut.lengths) + costs_of.start_keys
        costs += costs_of.merge_keys * (cut.counts > 1)
        if float(costs @ cut.counts) * units / slots > min(latest, best_end):
            continue
        end = _queue_end(np.sort(costs.repeat((cut.counts * units).astype(np.intp)))[::-1], slots)
        if end < best_end:
            best, best_end = cut, end
    return best if best_end <= latest else None


def split_prefixes(tiles: Tiles, side: Side) -> Cut:
    """Cut tiles of shared prefixes so that none takes longer than a slot's share of the work.

    They are few and long, and joined in any case, so that cutting them costs no merge. Others stay
    whole. Not bound by `side.max_partials`, beyond which there is room for them (`plan_bounds`).

    Parameters
    ----------
    tiles : Tiles
        The tiles, some of them of prefixes.
    side : Side
        What they are cut for.
    """
    of_prefixes = tiles.of_prefixes
    if of_prefixes == len(tiles):
        limit = limit_for(tiles, side, side.slots // side.units_per_tile)
    else:
        share = tiles.total * side.units_per_tile / side.slots
        limit = math.ceil(max(share, side.min_keys) / tiles.kv_tile)
    counts, lengths = np.ones(len(tiles)), tiles.steps.copy()
    counts[-of_prefixes:], lengths[-of_prefixes:] = cut_steps(tiles.steps[-of_prefixes:], limit)
    return Cut(counts, lengths, tiles.longest)


def taper(tiles: Tiles, side: Side, cut: Cut | None) -> Cut | None:
    """Cut what is handed out last finer, so that no slot is left with a long piece at the end.

    Pieces are handed out longest first. The last ones, as many as there are slots but no more than
    a quarter of the keys, get at most half the longest length, and half of them a quarter. Nothing
    is cut finer where that would need more than `side.max_partials`.

    Parameters
    ----------
    tiles : Tiles
        The tiles.
    side : Side
        What they are cut for.
    cut : Cut or None
        As the other rules make it.
    """
    kv_tile, total = tiles.kv_tile, tiles.total
    if cut is None:
        lengths, longest, num_pieces, order = (
            tiles.steps,
            tiles.longest,
            len(tiles.keys),
            tiles.order(),
        )
        in_order = tiles.falling_keys()
    else:
        lengths, num_pieces = cut.lengths, int(np.add.reduce(cut.counts))
        pieces = piece_keys(tiles, lengths)
        longest = int(pieces.item(pieces.argmax())) or 1
        order = longest_first(pieces, longest)
        in_order = tiles.keys[order]
    units = num_pieces * side.units_per_tile
    last = min(total // _MOST_TAPERED, side.slots * total // units)
    handed_out = np.add.accumulate(in_order)
    half, quarter = handed_out.searchsorted((total - last, total - last // 2), "right").tolist()
    least = max(side.min_keys // kv_tile, 1)
    limit_in_order = handed_out  # no longer needed
    limit_in_order[:half] = max(longest // kv_tile, least)
    limit_in_order[half:quarter] = max(longest // (2 * kv_tile), least)
    limit_in_order[quarter:] = max(longest // (4 * kv_tile), least)
    limit = np.empty(len(lengths))
    limit[order] = limit_in_order
    if cut is not None:
        np.minimum(limit, lengths, out=limit)
    tapered = Cut(*cut_steps(tiles.steps, limit), longest)
    return tapered if _fits(tapered, side) else cut


def _fits(cut: Cut, side: Side) -> bool:
    return side.max_partials is None or num_partials(cut) <= side.max_partials


def _wave_filling_number(units: int, slots: int, most: int) -> int:
    if units >= _BUSY_SHARE * slots:
        return 1
    numbers = np.arange(1, most + 1)
    waves = units * numbers / slots
    efficiency = waves / np.ceil(waves)
    return int(numbers[np.argmax(efficiency >= _WAVE_SHARE * efficiency.max())])


def _queue_end(costs: Floats, slots: int) -> float:
    """Return when the last slot ends that takes from a queue of units, longest first, in keys."""
    if len(costs) <= slots:
        return float(costs[0])
    ends = costs[:slots]
    for first in range(slots, len(costs), slots):  # units of a round are about the same length
        ends = np.sort(ends)
        taken = costs[first : first + slots]
        ends[: len(taken)] += taken
    return float(ends.max())
