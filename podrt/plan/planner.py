"""From a batch to a `Plan`: who is prefill and who decode, tiles, KV splits, order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from podrt.plan.by_request import cut_decode_by_request, cut_prefill_by_request
from podrt.plan.cut import Cut, Side, num_partials
from podrt.plan.end_together import split_to_end_together
from podrt.plan.items import SideItems, lay_out, request_rows
from podrt.plan.order import NO_RUNS, order_to_share_keys
from podrt.plan.split import split_for_waves, split_keys, split_to_fill_waves, taper
from podrt.plan.tiles import Indices, Tiles, tiles_of
from podrt.plan.tiling import Tiling
from podrt.plan.work import WORK_ITEM, Plan
from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import MOST_TREE_TOKENS, Mask

_NOBODY = np.empty(0, np.intp)
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
    prefill, decode = _tiles(batch, tiling, spec)
    cuts = _cuts_within(prefill, decode, tiling, spec.num_kv_heads)
    rows = request_rows(batch)
    prefill_side = decode_side = _NO_ITEMS
    in_order, runs = _NO_ITEMS.items, NO_RUNS
    if prefill is not None:
        prefill_side = lay_out(rows, prefill, cuts[0], tiling.prefill_rows)
        in_order = prefill_side.items
        if tiling.key_sharing is not None:
            in_order, runs = order_to_share_keys(in_order, prefill, spec, tiling.key_sharing)
    if decode is not None:
        _, merges, partial_rows = prefill_side
        decode_side = lay_out(rows, decode, cuts[1], tiling.decode_rows, merges, partial_rows)
    return Plan(
        prefill=in_order,
        decode=decode_side.items,
        spec=spec,
        prefill_rows=tiling.prefill_rows,
        decode_rows=tiling.decode_rows,
        num_merges=prefill_side.num_merges + decode_side.num_merges,
        partial_rows=prefill_side.partial_rows + decode_side.partial_rows,
        prefill_keys=0 if prefill is None else prefill.total,
        decode_keys=0 if decode is None else decode.total,
        prefill_runs=runs,
    )


def is_decode(q_lens: npt.NDArray[np.int32], group: int, decode_rows: int) -> npt.NDArray[np.bool_]:
    """Tell which requests are decodes: one token, or few enough to share one decode tile."""
    decoding: npt.NDArray[np.bool_] = q_lens <= most_decode_tokens(group, decode_rows)
    return decoding


def most_decode_tokens(group: int, decode_rows: int, mask: Mask = _CAUSAL) -> int:
    """Return the most query tokens of a decode; those that may have a tree take several tiles."""
    return max(MOST_TREE_TOKENS if mask.tree else 1, decode_rows // group)


def _tiles(
    batch: HybridBatch, tiling: Tiling, spec: AttentionSpec
) -> tuple[Tiles | None, Tiles | None]:
    """Return the tiles of prefill and decode, None for a side without any."""
    q_lens, kv_lens, group, mask = batch.q_lens, batch.kv_lens, spec.group, spec.mask
    most_tokens = most_decode_tokens(group, tiling.decode_rows, mask)
    large, small = _sides(batch, most_tokens)
    prefill = decode = None
    if len(large):
        rows, kv_tile = tiling.prefill_rows, tiling.prefill_kv_tile
        prefill = tiles_of(
            large, q_lens, kv_lens, rows, kv_tile, group, mask, False, batch.page_size
        )
    if len(small):
        rows, kv_tile = tiling.decode_rows, tiling.decode_kv_tile
        fits = min(most_tokens, batch.max_q_len) * group <= rows
        decode = tiles_of(small, q_lens, kv_lens, rows, kv_tile, group, mask, fits, batch.page_size)
    return prefill, decode


def _sides(batch: HybridBatch, most_tokens: int) -> tuple[Indices, Indices]:
    """Return the requests that are prefill, and those that are decode: at most so many tokens."""
    if batch.min_q_len > 0 and batch.max_q_len <= most_tokens:
        return _NOBODY, np.arange(batch.num_requests)
    is_small = batch.q_lens <= most_tokens
    large = (~is_small).nonzero()[0]
    if batch.min_q_len == 0:
        is_small &= batch.q_lens > 0
    return large, is_small.nonzero()[0]


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
    min_keys, slots = tiling.min_prefill_keys, tiling.prefill_slots
    prefill_side = Side(min_keys, num_kv_heads, slots, tiling.costs, max_partials[0])
    min_keys, slots = tiling.min_decode_keys, tiling.decode_slots
    decode_side = Side(min_keys, num_kv_heads, slots, tiling.costs, max_partials[1])
    return (
        _cut_prefill(prefill, prefill_side, tiling, decode),
        _cut_decode(decode, decode_side, tiling, prefill),
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
    decode: Tiles | None, side: Side, tiling: Tiling, prefill: Tiles | None
) -> Cut | None:
    if decode is None:
        return None
    if prefill is None:
        return split_to_end_together(decode, side, max_keys=tiling.decode_piece_keys)
    cut = split_to_end_together(decode, side, max_keys=tiling.fused_piece_keys)
    return taper(decode, side, cut) if tiling.taper_decode else cut


def _cut_prefill(
    prefill: Tiles | None, side: Side, tiling: Tiling, decode: Tiles | None
) -> Cut | None:
    if prefill is None:
        return None
    units, waves = side.units_per_tile, tiling.prefill_waves
    if waves is None:
        return split_for_waves(prefill, side)
    if decode is not None and len(decode) * units >= tiling.decode_slots:
        return None  # decode keeps busy what prefill leaves idle
    if len(prefill) * units < (1 - side.costs.max_idle_prefill) * side.slots:
        return split_keys(prefill, side, max_items=waves * side.slots // units)
    return split_to_fill_waves(prefill, side)
