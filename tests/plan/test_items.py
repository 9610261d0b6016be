"""Work items of tiles and their pieces."""

from __future__ import annotations

import numpy as np

from podrt.plan.cut import Cut
from podrt.plan.items import TileItems, lay_out
from podrt.plan.tile_rows import TileRows
from podrt.plan.tiles import Tiles, tiles_of
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import Mask

BATCH = HybridBatch.from_kv_indptr(
    np.array([0, 1, 21, 22], np.int32),
    np.array([300, 200, 500], np.int32),
    kv_indptr=np.array([0, 20, 33, 65], np.int32),
    num_kv_indices=65,
    page_size=16,
)
ALL = np.arange(3)


def items_of(requests: np.ndarray, tile_rows: int, group: int) -> tuple[TileItems, Tiles]:
    """Items of some requests' tiles, of whose keys nothing is known, and the tiles."""
    rows = TileRows(BATCH.queries, requests, tile_rows, group)
    return TileItems(rows), tiles_of(rows, BATCH.kv_lens, 64, Mask())


def cut_of(counts: list[int], lengths: list[int]) -> Cut:
    return Cut(np.array(counts, np.float64), np.array(lengths, np.float64), 500)


def test_whole_tiles_are_laid_out_longest_first() -> None:
    of_tiles, tiles = items_of(ALL[1:], 64, 4)
    items, num_merges, partial_rows = lay_out(of_tiles, BATCH, tiles, None)
    assert (num_merges, partial_rows) == (0, 0)
    assert items["request"].tolist() == [2, 1, 1]
    assert items["row_begin"].tolist() == [0, 64, 0]
    assert items["kv_end"].tolist() == [500, 200, 196]
    assert items["kv_len"].tolist() == [500, 200, 200]
    assert set(items["num_splits"].tolist()) == {1}


def test_items_repeat_what_the_batch_says_of_their_request() -> None:
    of_tiles, tiles = items_of(ALL, 128, 4)
    for cut in (None, cut_of([1, 2, 4], [5, 2, 2])):
        items, _, _ = lay_out(of_tiles, BATCH, tiles, cut)
        request = items["request"]
        assert sorted(set(request.tolist())) == [0, 1, 2]
        assert items["page_begin"].tolist() == BATCH.page_begin[request].tolist()
        assert items["q_begin"].tolist() == BATCH.qo_indptr[request].tolist()
        assert items["q_len"].tolist() == BATCH.q_lens[request].tolist()
        assert items["kv_len"].tolist() == BATCH.kv_lens[request].tolist()


def test_pieces_share_a_merge_and_have_their_own_partial_rows() -> None:
    of_tiles, tiles = items_of(ALL, 128, 4)
    cut = cut_of([1, 2, 4], [5, 2, 2])
    items, num_merges, partial_rows = lay_out(
        of_tiles, BATCH, tiles, cut, first_merge=7, first_partial_row=96
    )
    assert (num_merges, partial_rows) == (2, 6 * 128)
    pieces = items[["request", "kv_begin", "kv_end", "split", "num_splits"]].tolist()
    assert pieces == [
        (0, 0, 300, 0, 1),
        (1, 0, 128, 0, 2),
        (2, 0, 128, 0, 4),
        (2, 128, 256, 1, 4),
        (2, 256, 384, 2, 4),
        (2, 384, 500, 3, 4),
        (1, 128, 200, 1, 2),
    ]
    split = items[items["num_splits"] > 1]
    assert {(r, m, p) for r, m, p in split[["request", "merge", "partial_row"]].tolist()} == {
        (1, 7, 96),
        (2, 8, 96 + 2 * 128),
    }


def test_items_that_are_kept_are_those_of_other_pages_cuts_and_places() -> None:
    of_tiles, tiles = items_of(ALL, 128, 4)
    cuts = (cut_of([1, 2, 4], [5, 2, 2]), cut_of([2, 1, 1], [3, 4, 8]))
    other_pages = BATCH._replace(page_begin=BATCH.page_begin + np.int32(100))
    batches = (BATCH, other_pages)
    asked = [(b, c, first) for b in batches for c in cuts for first in ((0, 0), (3, 640))]
    for batch, cut, first in asked * 2:
        kept = lay_out(of_tiles, batch, tiles, cut, *first)
        new = lay_out(items_of(ALL, 128, 4)[0], batch, tiles, cut, *first)
        assert kept.items.tolist() == new.items.tolist()
