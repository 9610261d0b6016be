"""From a batch to a `Plan`: who is prefill and who decode, tiles, KV splits, order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.plan.split import (
    Side,
    Splits,
    split_for_waves,
    split_keys,
    split_to_end_together,
    split_to_fill_waves,
    taper,
)
from podrt.plan.work import WORK_ITEM, Plan, WorkList
from podrt.spec.batch import HybridBatch

Ints = npt.NDArray[np.int64]

#: Prefill is split as finely as allowed when it would leave more than this share of the GPU idle.
MAX_IDLE_PREFILL = 0.2


@dataclass(frozen=True)
class Tiling:
    """What the planner must know of the kernel and the GPU.

    Attributes
    ----------
    prefill_rows, decode_rows : int
        Packed query rows of a tile.
    prefill_kv_tile, decode_kv_tile : int
        Keys of one step; splits are cut at multiples of it.
    prefill_slots, decode_slots : int
        Units of each side that run at once when the other side has none.
    min_prefill_keys, min_decode_keys : int
        No piece of a split is to be shorter: starting and merging it costs more than it saves.
    prefill_waves : int or None
        Prefill that leaves slots idle is split into at most that many times `prefill_slots`:
        POD-Attention section 4.2.4 found two waves to be the most that pays, beyond which splits
        only add memory traffic. None splits without that limit, as if there were no decode.
    decode_piece_keys, fused_piece_keys : int
        Decode is split so that all slots end together, into pieces of at most so many keys when it
        is alone, and beside prefill.
    taper_decode : bool
        Beside prefill, what is handed out last of decode is split finer: lanes of unlike speed do
        not end together by themselves.
    """

    prefill_rows: int
    decode_rows: int
    prefill_kv_tile: int
    decode_kv_tile: int
    prefill_slots: int
    decode_slots: int
    min_prefill_keys: int
    min_decode_keys: int
    prefill_waves: int | None
    decode_piece_keys: int
    fused_piece_keys: int
    taper_decode: bool


@dataclass(frozen=True)
class _Tiles:
    """Tiles of one side: the request of each, its first packed row and the keys that it sees."""

    request: Ints
    row_begin: Ints
    keys: Ints


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
    decoding = is_decode(batch.q_lens, group, tiling.decode_rows)
    prefill = _tiles(batch, ~decoding, tiling.prefill_rows, group, causal)
    decode = _tiles(batch, decoding, tiling.decode_rows, group, causal)
    decode_fills_gpu = len(decode.keys) * num_kv_heads >= tiling.decode_slots
    decode_splits = _split_decode(
        decode.keys, num_kv_heads, tiling, beside_prefill=len(prefill.keys) > 0
    )
    prefill_splits = _split_prefill(prefill.keys, num_kv_heads, tiling, decode_fills_gpu)
    prefill_merges = int(prefill_splits.is_split.sum())
    prefill_rows = int(prefill_splits.partials.sum()) * tiling.prefill_rows
    decode_rows = int(decode_splits.partials.sum()) * tiling.decode_rows
    return Plan(
        prefill=_items(batch, prefill, prefill_splits, tiling.prefill_rows, 0, 0),
        decode=_items(
            batch, decode, decode_splits, tiling.decode_rows, prefill_merges, prefill_rows
        ),
        num_kv_heads=num_kv_heads,
        group=group,
        prefill_rows=tiling.prefill_rows,
        decode_rows=tiling.decode_rows,
        num_merges=prefill_merges + int(decode_splits.is_split.sum()),
        partial_rows=prefill_rows + decode_rows,
        causal=causal,
    )


def is_decode(q_lens: npt.NDArray[np.int32], group: int, decode_rows: int) -> npt.NDArray[np.bool_]:
    """Tell which requests are decodes: one token, or few enough to share one decode tile."""
    rows: Ints = q_lens.astype(np.int64) * group
    decoding: npt.NDArray[np.bool_] = (q_lens == 1) | (rows <= decode_rows)
    return decoding


def _split_decode(keys: Ints, num_kv_heads: int, tiling: Tiling, *, beside_prefill: bool) -> Splits:
    side = Side(tiling.decode_kv_tile, tiling.min_decode_keys, num_kv_heads, tiling.decode_slots)
    max_keys = tiling.fused_piece_keys if beside_prefill else tiling.decode_piece_keys
    splits = split_to_end_together(keys, side, max_keys=max_keys)
    return taper(splits, keys, side) if tiling.taper_decode and beside_prefill else splits


def _split_prefill(keys: Ints, num_kv_heads: int, tiling: Tiling, decode_fills_gpu: bool) -> Splits:
    side = Side(tiling.prefill_kv_tile, tiling.min_prefill_keys, num_kv_heads, tiling.prefill_slots)
    if tiling.prefill_waves is None:
        return split_for_waves(keys, side)
    if decode_fills_gpu:  # it keeps busy what prefill leaves idle
        return split_keys(keys, side, max_items=len(keys))
    if len(keys) * num_kv_heads < (1 - MAX_IDLE_PREFILL) * side.slots:
        max_items = tiling.prefill_waves * side.slots // num_kv_heads
        return split_keys(keys, side, max_items=max_items)
    return split_to_fill_waves(keys, side)


def _tiles(
    batch: HybridBatch, chosen: npt.NDArray[np.bool_], rows: int, group: int, causal: bool
) -> _Tiles:
    requests = np.flatnonzero(chosen & (batch.q_lens > 0))
    num_rows = batch.q_lens[requests].astype(np.int64) * group
    request, index = _expand(requests, -(-num_rows // rows))
    row_begin = index * rows
    q_len, kv_len = batch.q_lens[request].astype(np.int64), batch.kv_lens[request].astype(np.int64)
    keys = kv_len
    if causal:
        end_token = (row_begin + rows - 1) // group + 1  # beyond q_len in the last tile
        keys = np.clip(kv_len - q_len + end_token, 0, kv_len)
    return _Tiles(request, row_begin, keys)


def _items(
    batch: HybridBatch,
    tiles: _Tiles,
    splits: Splits,
    rows: int,
    first_merge: int,
    first_partial_row: int,
) -> WorkList:
    """Lay out the work items of one side, longest first."""
    split_rows = splits.partials * rows
    columns: dict[str, npt.NDArray[Any]] = {
        "request": tiles.request,
        "page_begin": batch.page_begin[tiles.request],
        "q_begin": batch.qo_indptr[tiles.request],
        "q_len": batch.q_lens[tiles.request],
        "kv_len": batch.kv_lens[tiles.request],
        "row_begin": tiles.row_begin,
        "num_splits": splits.counts,
        "partial_row": first_partial_row + np.cumsum(split_rows) - split_rows,
        "merge": first_merge + np.cumsum(splits.is_split) - splits.is_split,
    }
    tile, split = _expand(np.arange(len(tiles.keys)), splits.counts)
    items: np.ndarray[Any, Any] = np.empty(len(tile), WORK_ITEM)
    for name, column in columns.items():
        items[name] = column[tile]
    items["split"] = split
    items["kv_begin"] = split * splits.lengths[tile]
    items["kv_end"] = np.minimum((split + 1) * splits.lengths[tile], tiles.keys[tile])
    longest_first = np.argsort(items["kv_begin"] - items["kv_end"], kind="stable")
    return items[longest_first]


def _expand(values: npt.NDArray[Any], counts: Ints) -> tuple[Ints, Ints]:
    """Repeat every value `counts` times; also number the repetitions from 0."""
    starts = np.cumsum(counts) - counts
    index = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return np.repeat(values, counts), index
