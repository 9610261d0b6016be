"""From tiles and their cut to work items: the last step of a plan.

Items are rows of an int32 matrix until the end, when they are viewed as `WORK_ITEM`: indexing a
structured array costs forty times as much.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.plan.cut import Cut
from podrt.plan.places import Places
from podrt.plan.tile_rows import TileRows
from podrt.plan.tiles import Tiles, longest_first
from podrt.plan.work import WORK_ITEM, WORK_ITEM_FIELDS, WorkList
from podrt.spec.batch import HybridBatch

Rows = npt.NDArray[np.int32]  # [items, fields of WORK_ITEM]

_COLUMN = {name: column for column, (name, _) in enumerate(WORK_ITEM_FIELDS)}
REQUEST, PAGE_BEGIN, Q_BEGIN = (_COLUMN[name] for name in ("request", "page_begin", "q_begin"))
Q_LEN, KV_LEN, ROW_BEGIN = (_COLUMN[name] for name in ("q_len", "kv_len", "row_begin"))
_KV_BEGIN, KV_END, SPLIT = (_COLUMN[name] for name in ("kv_begin", "kv_end", "split"))
NUM_SPLITS, PARTIAL_ROW, MERGE = (_COLUMN[name] for name in ("num_splits", "partial_row", "merge"))

#: Most batches have no more requests.
_FEW_REQUESTS = 1024


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
    """Items of tiles in as far as neither their keys nor their cut matter; `lay_out` does the rest.

    The last ones are kept, as a server's next batch often has them again.

    Parameters
    ----------
    rows : TileRows
        The tiles.
    """

    __slots__ = ("_pieces", "_whole", "rows")

    def __init__(self, rows: TileRows) -> None:
        self.rows = rows
        self._whole: tuple[npt.NDArray[np.int32], Rows] | None = None
        self._pieces: dict[str, _Pieces] = {}  # at most one

    def whole(self, batch: HybridBatch) -> Rows:
        """Return the items of whole tiles of a batch, int32 ``[tiles, 12]``; not to be changed."""
        kept = self._whole
        if kept is not None and kept[0] is batch.page_begin:
            return kept[1]
        of_requests, rows = _items_of_requests(batch), self.rows
        if rows.row_begin is not None:
            whole = of_requests.take(rows.request, axis=0, mode="clip")
            whole[:, ROW_BEGIN] = rows.row_begin
        elif isinstance(rows.picked, slice):
            whole = of_requests[rows.picked]
        else:
            whole = of_requests.take(rows.request, axis=0, mode="clip")
        self._whole = batch.page_begin, whole
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
        kept = self._pieces.pop("kept", None)  # None the first time, or another thread has them
        if (
            kept is not None
            and kept.whole is whole
            and kept.places is places
            and kept.first == first
        ):
            return kept
        of_tiles = whole.copy()
        of_tiles[:, NUM_SPLITS] = places.counts
        of_tiles[:, PARTIAL_ROW] = places.first_partial * float(self.rows.tile_rows)
        of_tiles[:, MERGE] = places.split_before
        if first_merge:
            of_tiles[:, PARTIAL_ROW] += first_partial_row
            of_tiles[:, MERGE] += first_merge
        rows = of_tiles.take(places.tile, axis=0, mode="clip")
        rows[:, SPLIT] = places.split
        return _Pieces(whole, places, first, rows)

    def give_back(self, pieces: _Pieces) -> None:
        """Keep items that were taken for the next time."""
        self._pieces["kept"] = pieces


def _items_of_requests(batch: HybridBatch) -> Rows:
    """Return an item for each request, int32 ``[requests, 12]``; kept with the query lengths."""
    queries, page_begin = batch.queries, batch.page_begin
    kept: tuple[npt.NDArray[np.int32], Rows] | None = queries.derived.get(_items_of_requests)
    if kept is not None and kept[0] is page_begin:
        return kept[1]
    requests = len(queries.q_lens)
    many = requests > _FEW_REQUESTS
    items = _blank_items(requests) if many else _few_blank_items()[:requests].copy()
    items[:, PAGE_BEGIN] = page_begin
    items[:, Q_BEGIN] = queries.q_begin
    items[:, Q_LEN] = queries.q_lens
    queries.derived[_items_of_requests] = page_begin, items
    return items


def _blank_items(requests: int) -> Rows:
    """Return what is the same in all batches of so many requests."""
    items = np.zeros((requests, len(WORK_ITEM_FIELDS)), np.int32)
    items[:, REQUEST] = np.arange(requests)
    items[:, NUM_SPLITS] = 1
    return items


@cache
def _few_blank_items() -> Rows:
    """Return those of as many requests as most batches have; the first of them are copied."""
    return _blank_items(_FEW_REQUESTS)


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
    whole = tile_items.whole(batch)
    kv_len = _kv_len(tile_items.rows, batch, tiles)
    if cut is None:
        items = _whole(whole, tiles, kv_len)
        if first_merge:
            items[:, PARTIAL_ROW] = first_partial_row
            items[:, MERGE] = first_merge
        return SideItems(np.frombuffer(items, WORK_ITEM), 0, 0)
    places = cut.places
    pieces = tile_items.take_pieces(whole, places, first_merge, first_partial_row)
    items = _pieces(pieces.rows, tiles, places, cut, kv_len)
    tile_items.give_back(pieces)
    partial_rows = places.num_partials * tile_items.rows.tile_rows
    return SideItems(np.frombuffer(items, WORK_ITEM), places.num_split, partial_rows)


def _kv_len(rows: TileRows, batch: HybridBatch, tiles: Tiles) -> int | npt.NDArray[Any]:
    """Return the keys of each tile's request, or of the only one."""
    if isinstance(rows.picked, int):
        return batch.kv_lens.item(rows.picked)
    if tiles.row_begin is None and tiles.key_begin is None:
        return tiles.keys
    return batch.kv_lens.take(tiles.request)


def _whole(rows: Rows, tiles: Tiles, kv_len: int | npt.NDArray[Any]) -> Rows:
    """Return the items of whole tiles, longest first."""
    order = tiles.order()
    all_alike = tiles.total == len(tiles) * tiles.longest  # they are in order, and copied faster
    items = rows.copy() if all_alike else rows.take(order, axis=0, mode="clip")
    ends = tiles.falling_keys()
    if kv_len is tiles.keys:
        items[:, KV_LEN] = ends
    else:
        items[:, KV_LEN] = kv_len if isinstance(kv_len, int) else kv_len.take(order)
        if tiles.key_begin is not None:
            items[:, _KV_BEGIN] = begin = tiles.key_begin[order]
            ends = begin + ends
    items[:, KV_END] = ends
    return items


def _pieces(
    rows: Rows, tiles: Tiles, places: Places, cut: Cut, kv_len: int | npt.NDArray[Any]
) -> Rows:
    """Fill in what depends on keys, and return an item for every piece, longest first."""
    tile, split = places.tile, places.split
    length = (cut.lengths * tiles.kv_tile)[tile]
    begin = split * length
    keys = tiles.keys[tile]
    if kv_len is tiles.keys:
        rows[:, KV_LEN] = keys
    else:
        rows[:, KV_LEN] = kv_len if isinstance(kv_len, int) else kv_len[tile]
    keys -= begin
    np.minimum(keys, length, out=keys)
    order = longest_first(keys, min(cut.longest, tiles.longest))
    if tiles.key_begin is not None:
        begin += tiles.key_begin[tile]
    rows[:, _KV_BEGIN] = begin
    begin += keys
    rows[:, KV_END] = begin
    return rows.take(order, axis=0, mode="clip")
