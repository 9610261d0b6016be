"""Decodes are planned at lengths that stay the same for some steps of a server.

From one step to the next all decodes grow by a key, or by a few. Their side is planned as if each
had less by what the longest has beyond a multiple of `GROWTH_STEP`, and then the ends of their last
pieces are moved. So steps in a row have the same pieces in the same order, of which only ends
differ, and what was planned for one of them serves the others. It follows from a batch alone: which
steps came before changes no plan.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.plan.cut import Cut
from podrt.plan.items import (
    KV_END,
    KV_LEN,
    MERGE,
    NUM_SPLITS,
    PAGE_BEGIN,
    PARTIAL_ROW,
    Q_BEGIN,
    Q_LEN,
    REQUEST,
    ROW_BEGIN,
    SPLIT,
    Rows,
    SideItems,
    TileItems,
    lay_out,
)
from podrt.plan.tile_rows import TileRows
from podrt.plan.tiles import MOST_KEPT, Tiles
from podrt.plan.work import WORK_ITEM, Plan, WorkList
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import Mask
from podrt.spec.query_lengths import QueryLengths

#: Keys that decodes grow by before they are planned anew. The last piece of a decode is longer than
#: planned by less than this, as are those of all others, which is little beside a KV tile.
GROWTH_STEP = 16


class _LaidOut(NamedTuple):
    """Items of tiles as they were planned by a cut, and what else they were made of."""

    cut: Cut | None
    first: tuple[int, int]  # merge and partial row
    q_begin: npt.NDArray[np.int32]
    page_begin: npt.NDArray[np.int32]
    rows: Rows
    is_last: npt.NDArray[np.int32]  # 1 for the last piece of a tile, else 0
    num_merges: int
    partial_rows: int


def growth_of(rows: TileRows, batch: HybridBatch, mask: Mask) -> int | None:
    """Return how many keys less decodes are planned with; None where it saves nothing.

    Parameters
    ----------
    rows : TileRows
        The tiles of decode.
    batch : HybridBatch
        Lengths.
    mask : Mask
        Which keys a token sees.
    """
    if rows.row_begin is not None or len(rows.request) > MOST_KEPT:
        return None
    if _begins_move(mask, batch):
        return None
    kv_lens = batch.kv_lens[rows.picked]
    growth: int = kv_lens.item(kv_lens.argmax()) % GROWTH_STEP
    return growth if growth and kv_lens.item(kv_lens.argmin()) > growth else 0


def lay_out_grown(
    side: TileItems,
    batch: HybridBatch,
    tiles: Tiles,
    cut: Cut | None,
    first_merge: int,
    first_partial_row: int,
    growth: int,
) -> SideItems:
    """Lay out tiles that have `growth` keys more than planned; the rest is as in `lay_out`."""
    queries, page_begin = batch.queries, batch.page_begin
    first = first_merge, first_partial_row
    kept: _LaidOut | None = tiles.derived.get(lay_out_grown)
    if kept is None or kept.cut is not cut:
        items, num_merges, partial_rows = lay_out(side, batch, tiles, cut, *first)
        rows = _rows_of(items)
        is_last = _are_last(rows).astype(np.int32)
        kept = tiles.derived[lay_out_grown] = _LaidOut(
            cut, first, queries.q_begin, page_begin, rows, is_last, num_merges, partial_rows
        )
    rows = kept.rows.copy()
    if first != kept.first:  # prefill beside them is cut otherwise
        rows[:, MERGE] += first_merge - kept.first[0]
        rows[:, PARTIAL_ROW] += first_partial_row - kept.first[1]
    if queries.q_begin is not kept.q_begin:  # a chunk before them has another length
        rows[:, Q_BEGIN] = queries.q_begin.take(rows[:, REQUEST])
        rows[:, Q_LEN] = queries.q_lens.take(rows[:, REQUEST])
    if page_begin is not kept.page_begin:
        rows[:, PAGE_BEGIN] = page_begin.take(rows[:, REQUEST])
    if growth:
        rows[:, KV_LEN] += growth
        rows[:, KV_END] += kept.is_last * np.int32(growth)
    return SideItems(np.frombuffer(rows, WORK_ITEM), kept.num_merges, kept.partial_rows)


class Span(NamedTuple):
    """Decodes alone as they are planned, which serves them until they are planned anew.

    What a step of a server without prefill takes from the step before, in place of all of planning.
    """

    queries: QueryLengths
    kv_lens: bytes  # that they are planned at
    longest: int
    page_begin: npt.NDArray[np.int32]
    plan: Plan
    rows: Rows
    moved: Rows  # 1 where a key more is one more, else 0

    @classmethod
    def of(cls, batch: HybridBatch, plan: Plan) -> Span | None:
        """Return that of a batch that was planned; None where lengths are not to stay the same."""
        kv_lens = batch.kv_lens
        if len(plan.prefill) or batch.min_q_len < 1 or len(kv_lens) > MOST_KEPT:
            return None
        if _begins_move(plan.mask, batch):
            return None
        growth, rows = batch.max_kv_len % GROWTH_STEP, _rows_of(plan.decode)
        planned_at, longest = kv_lens - np.int32(growth), batch.max_kv_len - growth
        if planned_at.item(planned_at.argmin()) < 1 or rows[:, ROW_BEGIN].any():
            return None
        moved = np.zeros_like(rows)
        moved[:, KV_LEN] = 1
        moved[:, KV_END] = _are_last(rows)
        rows = rows - moved * np.int32(growth)
        plan = _with_decode(plan, rows, plan.decode_keys - growth * len(kv_lens))
        found = batch.queries, planned_at.tobytes(), longest, batch.page_begin, plan, rows, moved
        return cls(*found)

    def growth_of(self, batch: HybridBatch) -> int | None:
        """Return by how many keys requests are longer than planned; None for another's to plan."""
        growth = batch.max_kv_len - self.longest
        if batch.queries is not self.queries or not 0 <= growth < GROWTH_STEP or batch.prefixes:
            return None
        if (batch.kv_lens - np.int32(growth)).tobytes() != self.kv_lens:
            return None
        return growth

    def plan_of(self, batch: HybridBatch) -> Plan | None:
        """Return the plan of a batch, as `make_plan` would make it; None for another's to make."""
        growth = self.growth_of(batch)
        if growth is None:
            return None
        rows = self.rows + self.moved * np.int32(growth)
        if batch.page_begin is not self.page_begin:
            rows[:, PAGE_BEGIN] = batch.page_begin.take(rows[:, REQUEST])
        return _with_decode(self.plan, rows, self.plan.decode_keys + growth * len(batch.kv_lens))


def _begins_move(mask: Mask, batch: HybridBatch) -> bool:
    """Whether more of tiles than their ends moves as they grow.

    The first key in a window moves too, a tree's tiles end apart, and so do those of prefixes.
    """
    return mask.window_left is not None or mask.tree or bool(batch.prefixes)


def _are_last(rows: Rows) -> npt.NDArray[np.bool_]:
    """Return which rows are the last pieces of their tiles."""
    last: npt.NDArray[np.bool_] = rows[:, SPLIT] == rows[:, NUM_SPLITS] - 1
    return last


def _rows_of(items: WorkList) -> Rows:
    rows: Rows = items.view(np.int32).reshape(len(items), -1)
    return rows


def _with_decode(plan: Plan, rows: Rows, decode_keys: int) -> Plan:
    """Return a plan with other items of decode; in a third of the time of `_replace`."""
    return Plan(plan[0], np.frombuffer(rows, WORK_ITEM), *plan[2:8], decode_keys, *plan[9:])
