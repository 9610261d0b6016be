"""From tiles and their cut to work items: the last step of a plan.

Items are rows of an int32 matrix until the end, when they are viewed as `WORK_ITEM`: indexing a
structured array costs forty times as much.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.plan.cut import Cut
from podrt.plan.tiles import Tiles, longest_first
from podrt.plan.work import WORK_ITEM, WORK_ITEM_FIELDS, WorkList
from podrt.spec.batch import HybridBatch

Rows = npt.NDArray[np.int32]  # [items, fields of WORK_ITEM]

_COLUMN = {name: column for column, (name, _) in enumerate(WORK_ITEM_FIELDS)}
_REQUEST, _PAGE_BEGIN, _Q_BEGIN = (_COLUMN[name] for name in ("request", "page_begin", "q_begin"))
_Q_LEN, _KV_LEN, _ROW_BEGIN = (_COLUMN[name] for name in ("q_len", "kv_len", "row_begin"))
_KV_BEGIN, _KV_END, _SPLIT = (_COLUMN[name] for name in ("kv_begin", "kv_end", "split"))
_NUM_SPLITS, _PARTIAL_ROW, _MERGE = (
    _COLUMN[name] for name in ("num_splits", "partial_row", "merge")
)


class SideItems(NamedTuple):
    """Work items of one side, and the merges and rows of partial results that they need."""

    items: WorkList
    num_merges: int
    partial_rows: int


def request_rows(batch: HybridBatch) -> Rows:
    """Return an item for every request, as if each were one tile in one piece."""
    rows = _blank(batch.num_requests).copy()
    rows[:, _PAGE_BEGIN] = batch.page_begin
    rows[:, _Q_BEGIN] = batch.qo_indptr[:-1]
    rows[:, _Q_LEN] = batch.q_lens
    rows[:, _KV_LEN] = batch.kv_lens
    rows[:, _KV_END] = batch.kv_lens
    return rows


@lru_cache(maxsize=16)
def _blank(requests: int) -> Rows:
    """Return what items of so many requests have whatever their lengths."""
    rows = np.zeros((requests, len(WORK_ITEM_FIELDS)), np.int32)
    rows[:, _REQUEST] = np.arange(requests)
    rows[:, _NUM_SPLITS] = 1
    return rows


def lay_out(
    rows: Rows,
    tiles: Tiles,
    cut: Cut | None,
    tile_rows: int,
    first_merge: int = 0,
    first_partial_row: int = 0,
) -> SideItems:
    """Lay out the work items of one side, longest first.

    Parameters
    ----------
    rows : int32 array [requests, 12]
        From `request_rows`.
    tiles : Tiles
        Tiles of the side.
    cut : Cut or None
        Their pieces.
    tile_rows : int
        Packed query rows of a tile.
    first_merge, first_partial_row : int
        What other items have before these.
    """
    if cut is None:
        return _whole(rows, tiles, first_merge, first_partial_row)
    of_tiles = rows.take(tiles.request, axis=0, mode="clip")
    if tiles.row_begin is not None:
        of_tiles[:, _ROW_BEGIN] = tiles.row_begin
    places = cut.places
    of_tiles[:, _NUM_SPLITS] = cut.counts
    partial_row, merge = places.first_partial * tile_rows, places.split_before
    if first_merge:
        partial_row += first_partial_row
        merge = merge + first_merge
    of_tiles[:, _PARTIAL_ROW] = partial_row
    of_tiles[:, _MERGE] = merge
    items = _pieces(of_tiles, tiles, cut)
    return SideItems(items, places.num_split, places.num_partials * tile_rows)


def _whole(rows: Rows, tiles: Tiles, first_merge: int, first_partial_row: int) -> SideItems:
    order = tiles.order()
    items = rows.take(tiles.request[order], axis=0, mode="clip")
    if tiles.row_begin is not None:
        items[:, _ROW_BEGIN] = tiles.row_begin[order]
    if tiles.key_begin is not None:
        items[:, _KV_BEGIN] = begin = tiles.key_begin[order]
        items[:, _KV_END] = begin + tiles.falling_keys()
    elif tiles.row_begin is not None:
        items[:, _KV_END] = tiles.falling_keys()
    if first_merge:
        items[:, _PARTIAL_ROW] = first_partial_row
        items[:, _MERGE] = first_merge
    return SideItems(np.frombuffer(items, WORK_ITEM), 0, 0)


def _pieces(of_tiles: Rows, tiles: Tiles, cut: Cut) -> WorkList:
    """Return an item for every piece, longest first."""
    tile, split = cut.places.tile, cut.places.split
    length = (cut.lengths * tiles.kv_tile)[tile]
    begin = split * length
    keys = tiles.keys[tile]
    keys -= begin
    np.minimum(keys, length, out=keys)
    order = longest_first(keys, min(cut.longest, tiles.longest))
    items = of_tiles.take(tile, axis=0, mode="clip")
    items[:, _SPLIT] = split
    if tiles.key_begin is not None:
        begin += tiles.key_begin[tile]
    items[:, _KV_BEGIN] = begin
    begin += keys
    items[:, _KV_END] = begin
    return np.frombuffer(items.take(order, axis=0, mode="clip"), WORK_ITEM)
