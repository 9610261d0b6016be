"""What any plan of a batch within limits needs at most: memory that is set aside beforehand."""

from __future__ import annotations

from typing import NamedTuple

from podrt.plan.by_request import most_decode_pieces, most_prefill_partials
from podrt.plan.planner import most_decode_tokens
from podrt.plan.split import MANY_WAVES, MAX_SPLITS, MOST_PIECES
from podrt.plan.tiles import window_step
from podrt.plan.tiling import Tiling
from podrt.spec.mask import Mask

_NO_WINDOW = Mask()


class PlanBounds(NamedTuple):
    """Most work items, rows of partial results (`Plan.partial_rows`) and merges of a plan."""

    items: int
    partial_rows: int
    merges: int


class PrefixLimits(NamedTuple):
    """How requests may share prefixes.

    Attributes
    ----------
    max_prefixes, max_tokens : int
        Most prefixes of a batch, and tokens of all requests that share them.
    most_q_len : int
        Most tokens of one of those requests.
    """

    max_prefixes: int
    max_tokens: int
    most_q_len: int


class _SideBounds(NamedTuple):
    """Most tiles of a side, the rows of each, and its pieces that leave partial results."""

    tiles: int
    tile_rows: int
    partials: int


def plan_bounds(
    tiling: Tiling,
    *,
    num_kv_heads: int,
    group: int,
    max_requests: int,
    max_tokens: int,
    max_kv_len: int,
    mask: Mask = _NO_WINDOW,
    prefixes: PrefixLimits | None = None,
) -> PlanBounds:
    """Return what no plan of a batch within the limits exceeds.

    Parameters
    ----------
    tiling : Tiling
        What the plans are made with; its `max_partial_rows` keeps the bounds small.
    num_kv_heads, group : int
        KV heads, and query heads per KV head.
    max_requests : int
        Most requests of a batch.
    max_tokens : int
        Most query tokens of a batch, all requests together.
    max_kv_len : int
        Most keys of a request.
    mask : Mask
        Which of them a token sees.
    prefixes : PrefixLimits or None
        How requests may share prefixes, where they may.
    """
    more_tiles = prefixes.max_prefixes * -(-group // tiling.decode_rows) if prefixes else 0
    decode_tokens = most_decode_tokens(group, tiling.decode_rows, mask)
    prefill_tokens = tiling.prefill_rows // group + 2 if mask.causal else max_tokens
    prefill_keys, decode_keys = (
        _most_keys(mask, tokens, max_kv_len) for tokens in (prefill_tokens, decode_tokens)
    )
    sides = (
        _prefill_bounds(
            tiling,
            num_kv_heads,
            group,
            min(max_requests, max_tokens // (decode_tokens + 1)),
            max_tokens,
            prefill_keys,
        ),
        _decode_bounds(
            tiling,
            _most_decode_tiles(tiling, group, max_requests, max_tokens, mask) + more_tiles,
            decode_keys,
        ),
    )
    split = [side for side in sides if side.partials]
    partial_rows = sum(side.partials * side.tile_rows for side in split)
    if tiling.max_partial_rows is not None and tiling.request_cuts is None:
        partial_rows = min(partial_rows, tiling.max_partial_rows)
    fewest_rows = min((side.tile_rows for side in split), default=1)
    partials = min(sum(side.partials for side in split), partial_rows // fewest_rows)
    # A split tile has at least two pieces, one of which it would have anyway.
    bounds = PlanBounds(
        items=sum(side.tiles for side in sides) + max(partials - 1, 0),
        partial_rows=partial_rows,
        merges=min(sum(side.tiles for side in split), partials // 2),
    )
    if prefixes is None:
        return bounds
    return _with_prefixes(bounds, prefixes, tiling, num_kv_heads, group)


def _with_prefixes(
    bounds: PlanBounds, prefixes: PrefixLimits, tiling: Tiling, num_kv_heads: int, group: int
) -> PlanBounds:
    """Add what prefixes in tiles of prefill need; whole tiles leave partial results too."""
    rows, tokens = tiling.prefill_rows, prefixes.max_tokens
    full_tiles, decode_tiles = -(-tokens * group // rows), -(-group // tiling.decode_rows)
    tiles = full_tiles + prefixes.max_prefixes
    # `split_prefixes` makes a piece for each tile, and as many as slots have shares.
    pieces = 2 * tiles + tiling.prefill_slots // num_kv_heads
    whole_rows = tiling.decode_rows * decode_tiles * (prefixes.max_prefixes + tokens)
    decode_tokens = most_decode_tokens(group, tiling.decode_rows)
    if prefixes.most_q_len > decode_tokens:  # those are prefill, each with a tile that is not full
        whole_rows += rows * (full_tiles + tokens // (decode_tokens + 1))
    return PlanBounds(
        items=bounds.items + pieces,
        partial_rows=bounds.partial_rows + pieces * rows + whole_rows,
        merges=bounds.merges + tiles,
    )


def _most_keys(mask: Mask, tokens: int, max_kv_len: int) -> int:
    """Return the most keys of a tile from the first to the last that one of so many tokens sees."""
    if mask.window_left is None:
        return max_kv_len
    return min(mask.window_left + tokens + window_step(None) - 1, max_kv_len)


def _prefill_bounds(
    tiling: Tiling,
    num_kv_heads: int,
    group: int,
    requests: int,
    max_tokens: int,
    most_keys: int,
) -> _SideBounds:
    rows, slots = tiling.prefill_rows, tiling.prefill_slots
    # Each request has at most one tile that is not full.
    tiles = (max_tokens * group + requests * (rows - 1)) // rows if requests else 0
    if tiling.request_cuts is not None:
        partials = most_prefill_partials(requests, tiles, most_keys, num_kv_heads)
        return _SideBounds(tiles, rows, partials)
    steps = -(-most_keys // tiling.prefill_kv_tile)
    if tiling.prefill_waves is None:
        return _SideBounds(tiles, rows, _partials(tiles, min(steps, MAX_SPLITS)))
    to_use_idle_slots = tiling.prefill_waves * slots // num_kv_heads
    to_fill_waves = MOST_PIECES * min(tiles, MANY_WAVES * slots // num_kv_heads)
    partials = _partials(
        tiles, _most_splits(steps, tiling.min_prefill_keys // tiling.prefill_kv_tile)
    )
    return _SideBounds(tiles, rows, min(partials, max(to_use_idle_slots, to_fill_waves)))


def _most_decode_tiles(
    tiling: Tiling, group: int, max_requests: int, max_tokens: int, mask: Mask
) -> int:
    rows, requests = tiling.decode_rows, min(max_requests, max_tokens)
    if mask.tree:  # several tokens may take several tiles, of which one is not full
        return (max_tokens * group + requests * (rows - 1)) // rows
    return requests * -(-group // rows)


def _decode_bounds(tiling: Tiling, tiles: int, most_keys: int) -> _SideBounds:
    rows = tiling.decode_rows
    if tiling.request_cuts is not None:
        most = most_decode_pieces(most_keys, tiling.decode_kv_tile, tiling.request_cuts)
        return _SideBounds(tiles, rows, _partials(tiles, most))
    steps = -(-most_keys // tiling.decode_kv_tile)
    splits = _most_splits(steps, tiling.min_decode_keys // tiling.decode_kv_tile)
    return _SideBounds(tiles, rows, _partials(tiles, splits))


def _most_splits(steps: int, least_steps: int) -> int:
    """Return the most splits of a tile, each but the last of a limit of at least so many steps."""
    return -(-steps // max(least_steps, 1))


def _partials(tiles: int, splits: int) -> int:
    return tiles * splits if splits > 1 else 0
