"""From a batch to a `Plan`: who is prefill and who decode, tiles, KV splits, order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from podrt.plan.cut import Cut, Side, num_partials
from podrt.plan.end_together import split_to_end_together
from podrt.plan.items import SideItems, lay_out, request_rows
from podrt.plan.split import split_for_waves, split_keys, split_to_fill_waves, taper
from podrt.plan.tiles import Tiles, tiles_of
from podrt.plan.tiling import Tiling
from podrt.plan.work import WORK_ITEM, Plan
from podrt.spec.batch import HybridBatch

#: Prefill is split as finely as allowed when it would leave more than this share of the GPU idle.
MAX_IDLE_PREFILL = 0.2

_NO_ITEMS = SideItems(np.empty(0, WORK_ITEM), 0, 0)


def make_plan(
    batch: HybridBatch, tiling: Tiling, *, num_kv_heads: int, group: int, causal: bool
) -> Plan:
    """Plan a batch.

    Parameters
    ----------
    batch : HybridBatch
        Lengths and page geometry.
    tiling : Tiling
        Tiles and parallelism of the kernel.
    num_kv_heads, group : int
        KV heads, and query heads per KV head.
    causal : bool
        Bottom-right aligned causal mask.
    """
    prefill, decode = _sides(batch, tiling, group, causal)
    prefill_cut, decode_cut = _cuts(prefill, decode, tiling, num_kv_heads)
    rows = request_rows(batch)
    prefill_items = decode_items = _NO_ITEMS
    if prefill is not None:
        prefill_items = lay_out(rows, prefill, prefill_cut, tile_rows=tiling.prefill_rows)
    if decode is not None:
        decode_items = lay_out(
            rows,
            decode,
            decode_cut,
            tile_rows=tiling.decode_rows,
            first_merge=prefill_items.num_merges,
            first_partial_row=prefill_items.partial_rows,
        )
    return Plan(
        prefill=prefill_items.items,
        decode=decode_items.items,
        num_kv_heads=num_kv_heads,
        group=group,
        prefill_rows=tiling.prefill_rows,
        decode_rows=tiling.decode_rows,
        num_merges=prefill_items.num_merges + decode_items.num_merges,
        partial_rows=prefill_items.partial_rows + decode_items.partial_rows,
        causal=causal,
        prefill_keys=prefill.total if prefill is not None else 0,
        decode_keys=decode.total if decode is not None else 0,
    )


def is_decode(q_lens: npt.NDArray[np.int32], group: int, decode_rows: int) -> npt.NDArray[np.bool_]:
    """Tell which requests are decodes: one token, or few enough to share one decode tile."""
    decoding: npt.NDArray[np.bool_] = q_lens <= most_decode_tokens(group, decode_rows)
    return decoding


def most_decode_tokens(group: int, decode_rows: int) -> int:
    """Return the most query tokens of a decode."""
    return max(1, decode_rows // group)


def _sides(
    batch: HybridBatch, tiling: Tiling, group: int, causal: bool
) -> tuple[Tiles | None, Tiles | None]:
    """Return the tiles of prefill and decode, None for a side without any."""
    q_lens = batch.q_lens
    is_small = is_decode(q_lens, group, tiling.decode_rows)
    large = (~is_small).nonzero()[0]
    is_small &= q_lens > 0
    small = is_small.nonzero()[0]
    prefill = decode = None
    if len(large):
        rows, kv_tile = tiling.prefill_rows, tiling.prefill_kv_tile
        prefill = tiles_of(large, q_lens, batch.kv_lens, rows, kv_tile, group, causal, False)
    if len(small):
        rows, kv_tile = tiling.decode_rows, tiling.decode_kv_tile
        fits = group <= rows
        decode = tiles_of(small, q_lens, batch.kv_lens, rows, kv_tile, group, causal, fits)
    return prefill, decode


def _cuts(
    prefill: Tiles | None, decode: Tiles | None, tiling: Tiling, num_kv_heads: int
) -> tuple[Cut | None, Cut | None]:
    """Return the cuts of both sides, within the bound on partial results that they share."""
    prefill_side = Side(tiling.min_prefill_keys, num_kv_heads, tiling.prefill_slots)
    decode_side = Side(tiling.min_decode_keys, num_kv_heads, tiling.decode_slots)
    prefill_cut = _cut_prefill(prefill, prefill_side, tiling, decode)
    decode_cut = _cut_decode(decode, decode_side, tiling, prefill)
    most = tiling.max_partial_rows
    if most is None or prefill_cut is decode_cut is None:
        return prefill_cut, decode_cut
    prefill_rows = num_partials(prefill_cut) * tiling.prefill_rows
    decode_rows = num_partials(decode_cut) * tiling.decode_rows
    if prefill_rows + decode_rows <= most:
        return prefill_cut, decode_cut
    # Each side may have half, and what the other leaves of its own.
    prefill_most, decode_most = (
        max(most // 2, most - decode_rows),
        most - min(most // 2, prefill_rows),
    )
    if prefill_rows > prefill_most:
        prefill_side = prefill_side._replace(max_partials=prefill_most // tiling.prefill_rows)
        prefill_cut = _cut_prefill(prefill, prefill_side, tiling, decode)
    if decode_rows > decode_most:
        decode_side = decode_side._replace(max_partials=decode_most // tiling.decode_rows)
        decode_cut = _cut_decode(decode, decode_side, tiling, prefill)
    return prefill_cut, decode_cut


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
    if len(prefill) * units < (1 - MAX_IDLE_PREFILL) * side.slots:
        return split_keys(prefill, side, max_items=waves * side.slots // units)
    return split_to_fill_waves(prefill, side)
