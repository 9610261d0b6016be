"""From a batch to a `Plan`: who is prefill and who decode, tiles, KV splits, order."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from podrt.plan.by_request import cut_decode_by_request, cut_prefill_by_request
from podrt.plan.cut import Cut, Side, num_partials
from podrt.plan.end_together import split_to_end_together
from podrt.plan.growth import growth_of, lay_out_grown
from podrt.plan.items import SideItems, TileItems, lay_out
from podrt.plan.joins import SideWork, leave_to_join
from podrt.plan.order import NO_RUNS, order_to_share_keys
from podrt.plan.split import (
    split_for_waves,
    split_keys,
    split_prefixes,
    split_to_fill_waves,
    taper,
)
from podrt.plan.tile_rows import TileRows
from podrt.plan.tiles import Indices, Tiles, tiles_of
from podrt.plan.tiling import Tiling
from podrt.plan.work import WORK_ITEM, Plan
from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import MOST_TREE_TOKENS, Mask
from podrt.spec.query_lengths import QueryLengths

_NO_ITEMS = SideItems(np.empty(0, WORK_ITEM), 0, 0)
_CAUSAL = Mask()


def make_plan(batch: HybridBatch, tiling: Tiling, spec: AttentionSpec) -> Plan:
    """Plan a batch.

    Parameters
    ----------
    batch : HybridBatch
        Lengths and page geometry.
    tiling : Tiling
        Tiles and parallelism of the kernel.
    spec : AttentionSpec
        The attention layer: its heads and mask.
    """
    prefill_side, decode_side = _sides(batch.queries, tiling, spec)
    mask = spec.mask.within(batch.max_kv_len)
    prefill = decode = None
    if prefill_side is not None:
        prefill = _tiles(prefill_side, batch, tiling.prefill_kv_tile, mask)
    growth = None
    if decode_side is not None:
        if tiling.request_cuts is None:
            growth = growth_of(decode_side.rows, batch, mask)
        decode = _tiles(decode_side, batch, tiling.decode_kv_tile, mask, growth or 0)
    prefill_cut, decode_cut = _cuts_within(prefill, decode, tiling, spec.num_kv_heads)
    prefill_items = decode_items = _NO_ITEMS
    in_order, runs = _NO_ITEMS.items, NO_RUNS
    if prefill is not None and prefill_side is not None:
        prefill_items = lay_out(prefill_side, batch, prefill, prefill_cut)
        in_order = prefill_items.items
        if tiling.key_sharing is not None:
            sharing, beside = tiling.key_sharing, 0 if decode is None else decode.total
            in_order, runs = order_to_share_keys(in_order, prefill, spec, sharing, beside)
    if decode is not None and decode_side is not None:
        _, merges, partial_rows = prefill_items
        of_decode = decode_side, batch, decode, decode_cut, merges, partial_rows
        decode_items = lay_out(*of_decode) if growth is None else lay_out_grown(*of_decode, growth)
    partial_rows, joins = prefill_items.partial_rows + decode_items.partial_rows, None
    if batch.prefixes:
        sides = (
            SideWork(in_order, tiling.prefill_rows),
            SideWork(decode_items.items, tiling.decode_rows),
        )
        partial_rows, joins = leave_to_join(sides, partial_rows, batch, spec.group)
    return Plan(
        in_order,
        decode_items.items,
        spec,
        tiling.prefill_rows,
        tiling.decode_rows,
        num_merges=prefill_items.num_merges + decode_items.num_merges,
        partial_rows=partial_rows,
        prefill_keys=0 if prefill is None else prefill.total,
        decode_keys=0 if decode is None else decode.total + len(decode) * (growth or 0),
        prefill_runs=runs,
        joins=joins,
    )


def is_decode(q_lens: npt.NDArray[np.int32], group: int, decode_rows: int) -> npt.NDArray[np.bool_]:
    """Tell which requests are decodes: one token, or few enough to share one decode tile."""
    decoding: npt.NDArray[np.bool_] = q_lens <= most_decode_tokens(group, decode_rows)
    return decoding


def most_decode_tokens(group: int, decode_rows: int, mask: Mask = _CAUSAL) -> int:
    """Return the most query tokens of a decode; those that may have a tree take several tiles."""
    return max(MOST_TREE_TOKENS if mask.tree else 1, decode_rows // group)


_Sides = tuple[TileItems | None, TileItems | None]


def _sides(queries: QueryLengths, tiling: Tiling, spec: AttentionSpec) -> _Sides:
    """Return prefill and decode, None for a side without any; kept as long as the lengths are."""
    group, trees, decode_rows = spec.group, spec.mask.tree, tiling.decode_rows
    made_for = _sides, group, trees, tiling.prefill_rows, decode_rows
    found: _Sides | None = queries.derived.get(made_for)
    if found is None:
        most_tokens = most_decode_tokens(group, decode_rows, spec.mask)
        large, small = _requests(queries, most_tokens)
        fits = min(most_tokens, queries.max_q_len) * group <= decode_rows
        found = queries.derived[made_for] = (
            _side(queries, large, tiling.prefill_rows, group, one_each=False),
            _side(queries, small, decode_rows, group, one_each=fits),
        )
    return found


def _side(
    queries: QueryLengths, requests: Indices, tile_rows: int, group: int, *, one_each: bool
) -> TileItems | None:
    if not len(requests):
        return None
    return TileItems(TileRows(queries, requests, tile_rows, group, one_each=one_each))


def _requests(queries: QueryLengths, most_tokens: int) -> tuple[Indices, Indices]:
    """Return the requests that are prefill, and those that are decode: at most so many tokens."""
    num_requests = len(queries.q_lens)
    large = queries.above(most_tokens)
    if queries.min_q_len > 0:
        if not len(large):
            return large, _counting(num_requests)
        if len(large) == large.item(-1) + 1:  # decodes behind prefill
            return large, _counting(num_requests)[len(large) :]
        if len(large) == num_requests - large.item(0):
            return large, _counting(num_requests)[: -len(large)]
    is_small = queries.q_lens > 0
    is_small[large] = False
    return large, is_small.nonzero()[0]


def _counting(count: int) -> Indices:
    """Return 0, 1, 2, ...; read-only."""
    return _counting_to(1 << count.bit_length())[:count]


@lru_cache(maxsize=16)
def _counting_to(count: int) -> Indices:
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers


def _tiles(side: TileItems, batch: HybridBatch, kv_tile: int, mask: Mask, growth: int = 0) -> Tiles:
    kv_lens = batch.kv_lens - np.int32(growth) if growth else batch.kv_lens
    lengths = kv_lens, kv_tile, mask, batch.page_size
    return tiles_of(side.rows, *lengths, batch.first_prefix)


def _cuts_within(
    prefill: Tiles | None, decode: Tiles | None, tiling: Tiling, num_kv_heads: int
) -> tuple[Cut | None, Cut | None]:
    """Return the cuts of prefill and decode, within the bounds of the tiling."""
    if tiling.request_cuts is not None:
        return (
            None if prefill is None else cut_prefill_by_request(prefill, num_kv_heads),
            None if decode is None else cut_decode_by_request(decode, tiling.request_cuts),
        )
    cuts = _cuts(prefill, decode, tiling, num_kv_heads)
    if tiling.max_partial_rows is None:
        return cuts
    max_partials = _fair_shares(*cuts, tiling, tiling.max_partial_rows)
    if max_partials == (None, None):
        return cuts
    return _cuts(prefill, decode, tiling, num_kv_heads, max_partials)


def _cuts(
    prefill: Tiles | None,
    decode: Tiles | None,
    tiling: Tiling,
    num_kv_heads: int,
    max_partials: tuple[int | None, int | None] = (None, None),
) -> tuple[Cut | None, Cut | None]:
    """Return the cuts of prefill and decode, with no more partial results than given for each."""
    prefill_most, decode_most = max_partials
    return (
        None
        if prefill is None
        else _cut_prefill(prefill, tiling, num_kv_heads, prefill_most, decode),
        None if decode is None else _cut_decode(decode, tiling, num_kv_heads, decode_most, prefill),
    )


def _fair_shares(
    prefill: Cut | None, decode: Cut | None, tiling: Tiling, max_rows: int
) -> tuple[int | None, int | None]:
    """Return the partial results that each side may have, None for as many as it wants.

    Of too few rows each side may have half, and what the other leaves of its own.
    """
    prefill_rows = num_partials(prefill) * tiling.prefill_rows
    decode_rows = num_partials(decode) * tiling.decode_rows
    if prefill_rows + decode_rows <= max_rows:
        return None, None
    prefill_most = max(max_rows // 2, max_rows - decode_rows)
    decode_most = max_rows - min(max_rows // 2, prefill_rows)
    return (
        prefill_most // tiling.prefill_rows if prefill_rows > prefill_most else None,
        decode_most // tiling.decode_rows if decode_rows > decode_most else None,
    )


def _cut_decode(
    decode: Tiles, tiling: Tiling, num_kv_heads: int, max_partials: int | None, beside: Tiles | None
) -> Cut | None:
    made_for = tiling, num_kv_heads, max_partials, beside is None
    kept: tuple[object, Cut | None] | None = decode.derived.get(_cut_decode)
    if kept is not None and kept[0] == made_for:
        return kept[1]
    side = Side(
        tiling.min_decode_keys, num_kv_heads, tiling.decode_slots, tiling.costs, max_partials
    )
    if beside is None:
        cut = split_to_end_together(decode, side, max_keys=tiling.decode_piece_keys)
    else:
        cut = split_to_end_together(decode, side, max_keys=tiling.fused_piece_keys)
        if tiling.taper_decode:
            cut = taper(decode, side, cut)
    decode.derived[_cut_decode] = made_for, cut
    return cut


def _cut_prefill(
    prefill: Tiles,
    tiling: Tiling,
    num_kv_heads: int,
    max_partials: int | None,
    beside: Tiles | None,
) -> Cut | None:
    waves, slots = tiling.prefill_waves, tiling.prefill_slots
    side = Side(tiling.min_prefill_keys, num_kv_heads, slots, tiling.costs, max_partials)
    if prefill.of_prefixes:
        return split_prefixes(prefill, side)
    num_beside = 0 if beside is None else len(beside) * num_kv_heads
    if waves is not None and num_beside >= tiling.decode_slots:
        return None  # decode keeps busy what prefill leaves idle
    if waves is None:
        return split_for_waves(prefill, side)
    if prefill.longest < side.costs.least_cut_keys:
        return None
    if len(prefill) * num_kv_heads < (1 - side.costs.max_idle_prefill) * slots:
        return split_keys(prefill, side, max_items=waves * slots // num_kv_heads)
    return split_to_fill_waves(prefill, side)
