"""Work items of tiles and their pieces."""

from __future__ import annotations

import numpy as np

from podrt.plan.cut import Cut
from podrt.plan.items import lay_out, request_rows
from podrt.plan.tiles import Tiles
from podrt.spec.batch import HybridBatch

BATCH = HybridBatch.from_kv_indptr(
    np.array([0, 1, 21, 22], np.int32),
    np.array([300, 200, 500], np.int32),
    kv_indptr=np.array([0, 20, 33, 65], np.int32),
    num_kv_indices=65,
    page_size=16,
)
ROWS = request_rows(BATCH)
ALL = np.arange(3)


def cut_of(counts: list[int], lengths: list[int]) -> Cut:
    return Cut(np.array(counts, np.float64), np.array(lengths, np.float64), 500)


def test_whole_tiles_are_laid_out_longest_first() -> None:
    tiles = Tiles(np.array([1, 1, 2]), np.array([150.0, 200.0, 500.0]), 64, np.array([0.0, 64, 0]))
    items, num_merges, partial_rows = lay_out(ROWS, tiles, None, 64)
    assert (num_merges, partial_rows) == (0, 0)
    assert items["request"].tolist() == [2, 1, 1]
    assert items["row_begin"].tolist() == [0, 64, 0]
    assert items["kv_end"].tolist() == [500, 200, 150]
    assert set(items["num_splits"].tolist()) == {1}


def test_items_repeat_what_the_batch_says_of_their_request() -> None:
    tiles = Tiles(ALL, np.array([300.0, 200.0, 500.0]), 64)
    for cut in (None, cut_of([1, 2, 4], [5, 2, 2])):
        items, _, _ = lay_out(ROWS, tiles, cut, 16)
        request = items["request"]
        assert sorted(set(request.tolist())) == [0, 1, 2]
        assert items["page_begin"].tolist() == BATCH.page_begin[request].tolist()
        assert items["q_begin"].tolist() == BATCH.qo_indptr[request].tolist()
        assert items["q_len"].tolist() == BATCH.q_lens[request].tolist()
        assert items["kv_len"].tolist() == BATCH.kv_lens[request].tolist()


def test_pieces_share_a_merge_and_have_their_own_partial_rows() -> None:
    tiles = Tiles(ALL, np.array([300.0, 200.0, 500.0]), 64)
    cut = cut_of([1, 2, 4], [5, 2, 2])
    items, num_merges, partial_rows = lay_out(
        ROWS, tiles, cut, 16, first_merge=7, first_partial_row=96
    )
    assert (num_merges, partial_rows) == (2, 6 * 16)
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
        (2, 8, 96 + 2 * 16),
    }
