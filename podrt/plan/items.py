"""From tiles and their cut to work items: the last step of a plan.

Items are rows of an int32 matrix until the end, when they are viewed as `WORK_ITEM`: indexing a
structured array costs forty times as much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.plan.cut import Cut
from podrt.plan.places import Places
from podrt.plan.tiles import TileRows, Tiles, longest_first
from podrt.plan.work import WORK_ITEM, WORK_ITEM_FIELDS, WorkList
from podrt.spec.batch import HybridBatch, QueryLengths

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


class _Pieces(NamedTuple):
    """Items of pieces in as far as their keys do not matter, and what they were made for."""

    whole: Rows
    places: Places
    first: tuple[int, int]
    rows: Rows


class TileItems:
    """Items of tiles in as far as their keys do not matter: those are filled in by `lay_out`.

    The last ones are kept, as a server's next batch often has them again.

    Parameters
    ----------
    queries : QueryLengths
        Of the batch.
    rows : TileRows
        The tiles.
    tile_rows : int
        Packed query rows of a tile.
    """

    def __init__(self, queries: QueryLengths, rows: TileRows, tile_rows: int) -> None:
        self.tile_rows = tile_rows
        self._rows = rows
        self._q_begin, self._q_len = queries.qo_indptr[rows.picked], queries.q_lens[rows.picked]
        self._whole: tuple[npt.NDArray[np.int32], Rows] | None = None
        self._pieces: list[_Pieces] = []  # at most one

    def whole(self, page_begin: npt.NDArray[np.int32]) -> Rows:
        """Return the items of whole tiles, int32 ``[tiles, 12]``; not to be changed.

        Parameters
        ----------
        page_begin : int32 array [requests]
            As `HybridBatch.page_begin`.
        """
        kept = self._whole
        if kept is not None and kept[0] is page_begin:
            return kept[1]
        whole = self._without_pages() if kept is None else kept[1].copy()
        whole[:, _PAGE_BEGIN] = page_begin[self._rows.picked]
        self._whole = page_begin, whole
        return whole

    def _without_pages(self) -> Rows:
        rows = self._rows
        whole = np.zeros((len(rows.request), len(WORK_ITEM_FIELDS)), np.int32)
        whole[:, _REQUEST] = rows.request
        whole[:, _Q_BEGIN] = self._q_begin
        whole[:, _Q_LEN] = self._q_len
        if rows.row_begin is not None:
            whole[:, _ROW_BEGIN] = rows.row_begin
        whole[:, _NUM_SPLITS] = 1
        return whole

    def take_pieces(
        self, whole: Rows, places: Places, first_merge: int, first_partial_row: int
    ) -> _Pieces:
        """Return the items of pieces, which are the caller's until `give_back`.

        Parameters
        ----------
        whole : int32 array [tiles, 12]
            Items of the whole tiles.
        places : Places
            Where the pieces are.
        first_merge, first_partial_row : int
            What other items have before these.
        """
        first = first_merge, first_partial_row
        try:
            kept = self._pieces.pop()
        except IndexError:  # the first time, or another thread has them
            pass
        else:
            if kept.whole is whole and kept.places is places and kept.first == first:
                return kept
        of_tiles = whole.copy()
        of_tiles[:, _NUM_SPLITS] = places.counts
        of_tiles[:, _PARTIAL_ROW] = places.first_partial * self.tile_rows + first_partial_row
        of_tiles[:, _MERGE] = places.split_before + first_merge
        rows = of_tiles.take(places.tile, axis=0, mode="clip")
        rows[:, _SPLIT] = places.split
        return _Pieces(whole, places, first, rows)

    def give_back(self, pieces: _Pieces) -> None:
        """Keep items that were taken for the next time."""
        self._pieces[:] = (pieces,)


def lay_out(
    tile_items: TileItems,
    batch: HybridBatch,
    tiles: Tiles,
    cut: Cut | None,
    first_merge: int = 0,
    first_partial_row: int = 0,
) -> SideItems:
    """Lay out the work items of one side, longest first.

    Parameters
    ----------
    tile_items : TileItems
        What is known of them whatever their keys.
    batch : HybridBatch
        Lengths and page geometry.
    tiles : Tiles
        Tiles of the side.
    cut : Cut or None
        Their pieces.
    first_merge, first_partial_row : int
        What other items have before these.
    """
    whole = tile_items.whole(batch.page_begin)
    see_all = tiles.row_begin is None and tiles.key_begin is None
    kv_len = tiles.keys if see_all else batch.kv_lens.take(tiles.request)
    if cut is None:
        items = _whole(whole, tiles, kv_len)
        if first_merge:
            items[:, _PARTIAL_ROW] = first_partial_row
            items[:, _MERGE] = first_merge
        return SideItems(np.frombuffer(items, WORK_ITEM), 0, 0)
    places = cut.places
    pieces = tile_items.take_pieces(whole, places, first_merge, first_partial_row)
    items = _pieces(pieces.rows, tiles, cut, kv_len)
    tile_items.give_back(pieces)
    partial_rows = places.num_partials * tile_items.tile_rows
    return SideItems(np.frombuffer(items, WORK_ITEM), places.num_split, partial_rows)


def _whole(rows: Rows, tiles: Tiles, kv_len: npt.NDArray[Any]) -> Rows:
    """Return the items of whole tiles, longest first."""
    order = tiles.order()
    items = rows.take(order, axis=0, mode="clip")
    ends = tiles.falling_keys()
    if kv_len is tiles.keys:
        items[:, _KV_LEN] = ends
    else:
        items[:, _KV_LEN] = kv_len.take(order)
        if tiles.key_begin is not None:
            items[:, _KV_BEGIN] = begin = tiles.key_begin[order]
            ends = begin + ends
    items[:, _KV_END] = ends
    return items


def _pieces(rows: Rows, tiles: Tiles, cut: Cut, kv_len: npt.NDArray[Any]) -> Rows:
    """Fill in what depends on keys, and return an item for every piece, longest first."""
    tile, split = cut.places.tile, cut.places.split
    length = (cut.lengths * tiles.kv_tile)[tile]
    begin = split * length
    keys = tiles.keys[tile]
    rows[:, _KV_LEN] = keys if kv_len is tiles.keys else kv_len[tile]
    keys -= begin
    np.minimum(keys, length, out=keys)
    order = longest_first(keys, min(cut.longest, tiles.longest))
    if tiles.key_begin is not None:
        begin += tiles.key_begin[tile]
    rows[:, _KV_BEGIN] = begin
    begin += keys
    rows[:, _KV_END] = begin
    return rows.take(order, axis=0, mode="clip")
