"""The rules of splitting, spelled out slowly: what the fast ones are compared with."""

from __future__ import annotations

import numpy as np

from podrt.plan.cut import Cut, Side
from podrt.plan.tiles import Tiles
from podrt.policy.calibration import H200

COSTS = H200.hopper_cuts.costs

Pieces = list[tuple[int, int]]  # of each tile: how many, and the KV tiles of each but the last


def tiles_of_keys(keys: list[int], kv_tile: int) -> Tiles:
    return Tiles(np.arange(len(keys)), np.array(keys, np.float64), kv_tile)


def side_of(
    slots: int = 1, units: int = 1, *, min_keys: int = 1, max_partials: int | None = None
) -> Side:
    return Side(min_keys, units, slots, COSTS, max_partials)


def pieces_of(tiles: Tiles, cut: Cut | None) -> Pieces:
    if cut is None:
        return [(1, int(steps)) for steps in tiles.steps]
    return list(zip(cut.counts.astype(int).tolist(), cut.lengths.astype(int).tolist(), strict=True))


def partials(pieces: Pieces) -> int:
    return sum(count for count, _ in pieces if count > 1)


def slow_cut(keys: list[int], kv_tile: int, limit: int | list[int]) -> Pieces:
    """Equal pieces of at most `limit` KV tiles, one limit for all or one for each."""
    limits = limit if isinstance(limit, list) else [limit] * len(keys)
    pieces = []
    for num_keys, longest in zip(keys, limits, strict=True):
        steps = max(-(-num_keys // kv_tile), 1)
        count = -(-steps // longest)
        pieces.append((count, -(-steps // count)))
    return pieces


def slow_limit(keys: list[int], kv_tile: int, side: Side, max_items: int) -> int:
    longest = max(*keys, 1)
    low = -(-min(side.min_keys, longest) // kv_tile)
    for limit in range(low, -(-longest // kv_tile)):
        if sum(count for count, _ in slow_cut(keys, kv_tile, limit)) <= max_items:
            return limit
    return max(low, -(-longest // kv_tile))


def piece_lengths(keys: list[int], kv_tile: int, pieces: Pieces) -> list[int]:
    """Keys of the longest piece of each tile."""
    return [min(n, length * kv_tile) for n, (_, length) in zip(keys, pieces, strict=True)]


def slow_end_together(keys: list[int], kv_tile: int, side: Side, max_keys: int) -> Pieces:
    one_wave = slow_limit(keys, kv_tile, side, side.slots // side.units_per_tile)
    least, most = -(-side.min_keys // kv_tile), -(-max_keys // kv_tile)
    factors = (1, 2, 3, 4, 6, 8, 12, 16)
    wanted = {-(-one_wave // factor) for factor in factors} | {one_wave * f for f in factors}
    limits = sorted({min(max(limit, least), most) for limit in wanted}, reverse=True)
    cuts = [slow_cut(keys, kv_tile, limit) for limit in limits]
    ends = [_waves_end(keys, kv_tile, side, pieces) for pieces in cuts]
    return next(cut for cut, end in zip(cuts, ends, strict=True) if end <= 1.08 * min(ends))


def _waves_end(keys: list[int], kv_tile: int, side: Side, pieces: Pieces) -> int:
    units = []
    for longest, (count, _) in zip(piece_lengths(keys, kv_tile, pieces), pieces, strict=True):
        units += [longest] * count * side.units_per_tile
    units.sort(reverse=True)
    most = max(count for count, _ in pieces)
    merging = 8 * most if most > 1 else 0
    return sum(first + 128 for first in units[:: side.slots]) + merging


def slow_fill_waves(keys: list[int], kv_tile: int, side: Side) -> Pieces:
    longest = max(*keys, 1)
    whole = slow_cut(keys, kv_tile, -(-longest // kv_tile))
    if len(keys) * side.units_per_tile > 6 * side.slots:
        return whole
    limits = [-(-longest // (number * kv_tile)) for number in range(2, 6)]
    cuts = [slow_cut(keys, kv_tile, limit) for limit in limits if limit * kv_tile >= side.min_keys]
    ends = [_queue_end(keys, kv_tile, side, cut) for cut in [whole, *cuts]]
    best = min(ends)
    return [whole, *cuts][ends.index(best)] if best <= 0.88 * ends[0] else whole


def _queue_end(keys: list[int], kv_tile: int, side: Side, pieces: Pieces) -> int:
    costs = []
    for longest, (count, _) in zip(piece_lengths(keys, kv_tile, pieces), pieces, strict=True):
        costs += [longest + 128 + (256 if count > 1 else 0)] * count * side.units_per_tile
    costs.sort(reverse=True)
    ends = [0] * side.slots
    for first in range(0, len(costs), side.slots):
        taken = costs[first : first + side.slots]
        ends.sort()
        ends = [end + cost for end, cost in zip(ends, taken, strict=False)] + ends[len(taken) :]
    return max(ends)


def slow_taper(keys: list[int], kv_tile: int, side: Side, pieces: Pieces) -> Pieces:
    lengths = piece_lengths(keys, kv_tile, pieces)
    longest, total = max(*lengths, 1), sum(keys)
    units = sum(count for count, _ in pieces) * side.units_per_tile
    last = min(total // 4, side.slots * total // units)
    limits, handed_out = [0] * len(keys), 0
    for tile in sorted(range(len(keys)), key=lambda tile: -lengths[tile]):
        handed_out += keys[tile]
        left = total - handed_out
        divisor = 1 if left >= last else 2 if left >= last // 2 else 4
        most = max(longest // divisor, side.min_keys)
        limits[tile] = max(min(most, pieces[tile][1] * kv_tile) // kv_tile, 1)
    return slow_cut(keys, kv_tile, limits)
