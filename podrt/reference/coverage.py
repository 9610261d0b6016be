"""What a `Plan` computes, counted without computing it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.plan.order import MAX_RUNS, prefill_unit
from podrt.plan.tiles import window_step
from podrt.plan.work import Plan, WorkList
from podrt.spec.batch import HybridBatch

Counts = npt.NDArray[np.int32]


def coverage(plan: Plan, batch: HybridBatch) -> list[Counts]:
    """Count how often every pair of query row and key is computed.

    The counts hold for each KV head, since a work item stands for all of them. They follow the
    items' own lengths and the mask, as the kernels do.

    Parameters
    ----------
    plan : Plan
        The plan to look at.
    batch : HybridBatch
        The batch that it was made for.

    Returns
    -------
    list of int32 arrays [q_len * group, kv_len]
        One per request: packed row by key. A right plan equals `expected_coverage`.

    Raises
    ------
    ValueError
        An item reaches outside its request's rows or keys.
    """
    counts = [
        np.zeros((int(q_len) * plan.group, int(kv_len)), np.int32)
        for q_len, kv_len in zip(batch.q_lens, batch.kv_lens, strict=True)
    ]
    for side, items, tile_rows in _sides(plan):
        for number, item in enumerate(items):
            _require_inside(f"{side}[{number}]", item, batch, plan.group)
            rows = _rows(item, tile_rows, plan.group)
            keys = np.arange(item["kv_begin"], item["kv_end"])
            seen = _sees(rows, keys, int(item["q_len"]), int(item["kv_len"]), plan)
            counts[item["request"]][rows[:, None], keys] += seen
    return counts


def expected_coverage(plan: Plan, batch: HybridBatch) -> list[Counts]:
    """Return what `coverage` must be: 1 for every visible pair and 0 for every other one."""
    return [
        _sees(np.arange(abs(q_len) * plan.group), np.arange(kv_len), q_len, kv_len, plan).astype(
            np.int32
        )
        for q_len, kv_len in (_item_lengths(batch, i) for i in range(batch.num_requests))
    ]


def _item_lengths(batch: HybridBatch, request: int) -> tuple[int, int]:
    """Return query tokens and keys of a request's items; tokens of a prefix are negative."""
    is_prefix = batch.first_prefix is not None and request >= batch.first_prefix
    q_len, kv_len = int(batch.q_lens[request]), int(batch.kv_lens[request])
    return -q_len if is_prefix else q_len, kv_len


def check_plan(plan: Plan, batch: HybridBatch) -> None:
    """Check everything that a kernel relies on in a plan.

    Every visible pair of query row and key is computed exactly once and no other; every row is
    written by exactly one tile, rows that see no key included; items repeat the batch's lengths,
    and have no keys that windows hide but for those that share a `window_step` with one that they
    do not; the splits of a tile agree, are complete, and have partial rows that nobody else has;
    every unit of prefill is handed out once; each token that shares a prefix is joined once, from
    the tiles of its request and of its prefix.

    Raises
    ------
    ValueError
        The first rule that is broken, with the item or request.
    """
    for side, items, _ in _sides(plan):
        for number, item in enumerate(items):
            _require_same_lengths(f"{side}[{number}]", item, batch)
            _require_inside(f"{side}[{number}]", item, batch, plan.group)
            _require_no_hidden_keys(f"{side}[{number}]", item, plan)
    _require_units_once(plan)
    _require_complete_splits(plan)
    _require_own_partial_rows(plan)
    _require_written_once(plan, batch)
    _require_pairs_once(plan, batch)
    _require_joined(plan, batch)


def _sides(plan: Plan) -> tuple[tuple[str, WorkList, int], ...]:
    return (
        ("prefill", plan.prefill, plan.prefill_rows),
        ("decode", plan.decode, plan.decode_rows),
    )


def _rows(item: Any, tile_rows: int, group: int) -> npt.NDArray[np.int64]:
    end = min(int(item["row_begin"]) + tile_rows, abs(int(item["q_len"])) * group)
    return np.arange(int(item["row_begin"]), end)


def _sees(
    rows: npt.NDArray[np.int64], keys: npt.NDArray[np.int64], q_len: int, kv_len: int, plan: Plan
) -> npt.NDArray[np.bool_]:
    """Whether packed row and key meet, ``[rows, keys]``."""
    return plan.mask.sees(rows // plan.group, keys, q_len, kv_len)


def _request(where: str, item: Any, batch: HybridBatch) -> int:
    request = int(item["request"])
    if not 0 <= request < batch.num_requests:
        raise ValueError(f"{where}: request={request} of {batch.num_requests}")
    return request


def _require_inside(where: str, item: Any, batch: HybridBatch, group: int) -> None:
    request = _request(where, item, batch)
    rows = int(batch.q_lens[request]) * group
    if not 0 <= item["row_begin"] < rows or abs(item["q_len"]) * group > rows:
        raise ValueError(
            f"{where}: row_begin={item['row_begin']}, q_len={item['q_len']} with {rows} packed rows"
        )
    if not 0 <= item["kv_begin"] <= item["kv_end"] <= batch.kv_lens[request]:
        raise ValueError(
            f"{where}: keys {item['kv_begin']} to {item['kv_end']} of {batch.kv_lens[request]}"
        )


def _require_same_lengths(where: str, item: Any, batch: HybridBatch) -> None:
    request = _request(where, item, batch)
    q_len, kv_len = _item_lengths(batch, request)
    for field, of_request in (
        ("page_begin", batch.page_begin[request]),
        ("q_begin", batch.queries.q_begin[request]),
        ("q_len", q_len),
        ("kv_len", kv_len),
    ):
        if item[field] != of_request:
            raise ValueError(f"{where}: {field}={item[field]}; request {request} has {of_request}")


def _require_no_hidden_keys(where: str, item: Any, plan: Plan) -> None:
    """Check that no page which lies before all windows is read: it may be somebody else's."""
    token, step = int(item["row_begin"]) // plan.group, window_step(plan.spec.page_size)
    first, _ = plan.mask.key_range(token, int(item["q_len"]), int(item["kv_len"]))
    if item["kv_begin"] < first // step * step:
        raise ValueError(
            f"{where}: kv_begin={item['kv_begin']}; its tokens see keys from {first} on"
        )


def _require_units_once(plan: Plan) -> None:
    """Check the runs of prefill, and walk its units as they are handed out."""
    runs, items = plan.prefill_runs, len(plan.prefill)
    if (
        len(runs) > MAX_RUNS
        or list(runs) != sorted({*runs})
        or not {*runs} <= {*range(1, items + 1)}
    ):
        raise ValueError(
            f"prefill_runs={runs}: expected at most {MAX_RUNS} ascending ends from 1 to {items}"
        )
    times = np.zeros((items, plan.num_kv_heads), np.int32)
    for unit in range(plan.num_prefill_units):
        times[prefill_unit(unit, runs, plan.num_kv_heads)] += 1
    for item, kv_head in np.argwhere(times != 1):
        raise ValueError(
            f"prefill[{item}]: KV head {kv_head} is handed out {times[item, kv_head]} times; "
            "expected 1"
        )


def _require_complete_splits(plan: Plan) -> None:
    """Check that every merge has all splits of one tile."""
    tiles: dict[int, tuple[Any, ...]] = {}
    splits: dict[int, list[int]] = {}
    fields = ["request", "row_begin", "partial_row", "num_splits"]
    for side, items, _ in _sides(plan):
        for item in items[items["num_splits"] > 1]:
            merge, tile = int(item["merge"]), (side, *(int(item[field]) for field in fields))
            if tiles.setdefault(merge, tile) != tile:
                raise ValueError(f"merge {merge} is used by tiles {tiles[merge]} and {tile}")
            splits.setdefault(merge, []).append(int(item["split"]))
    # Tiles that are joined have counters too, which nobody uses.
    there_are = {*range(plan.num_merges)}
    if not (there_are >= {*tiles} if plan.joins else there_are == {*tiles}):
        raise ValueError(f"merges {sorted(tiles)} are used; expected 0 to {plan.num_merges - 1}")
    for merge, got in splits.items():
        if sorted(got) != list(range(tiles[merge][-1])):
            raise ValueError(f"merge {merge} has splits {sorted(got)} of {tiles[merge][-1]}")


def _require_own_partial_rows(plan: Plan) -> None:
    """Check that no two splits share a row of the partial buffers."""
    owners = np.zeros(plan.partial_rows, np.int32)
    for side, items, tile_rows in _sides(plan):
        for number in np.flatnonzero(items["num_splits"] != 1):
            item = items[number]
            begin = int(item["partial_row"]) + int(item["split"]) * tile_rows
            if begin < 0 or begin + tile_rows > plan.partial_rows:
                raise ValueError(
                    f"{side}[{number}]: partial rows {begin} to {begin + tile_rows} of "
                    f"{plan.partial_rows}"
                )
            owners[begin : begin + tile_rows] += 1
    if (owners > 1).any():
        raise ValueError(f"partial row {int(np.argmax(owners > 1))} belongs to two splits")


def _require_pairs_once(plan: Plan, batch: HybridBatch) -> None:
    """Check the keys of every row as intervals, in memory and time of the number of items."""
    requests: list[list[tuple[int, int, int, int]]] = [[] for _ in range(batch.num_requests)]
    for _, items, tile_rows in _sides(plan):
        for item in items:
            row_begin, q_rows = int(item["row_begin"]), abs(int(item["q_len"])) * plan.group
            rows = row_begin, min(row_begin + tile_rows, q_rows)
            requests[item["request"]].append((*rows, int(item["kv_begin"]), int(item["kv_end"])))
    for request, rectangles in enumerate(requests):
        if rectangles:
            lengths = _item_lengths(batch, request)
            _require_cut_once(request, np.array(rectangles), *lengths, plan)


def _require_cut_once(
    request: int, rectangles: npt.NDArray[np.int64], q_len: int, kv_len: int, plan: Plan
) -> None:
    """Check that rectangles ``[row_begin, row_end, kv_begin, kv_end]`` cut what the rows see.

    Between two ends of tiles all rows have the same rectangles. The first of them sees from the
    lowest key on and the last to the highest; what cuts all between these once does so for each.
    """
    edges = np.unique(rectangles[:, :2])
    first, last = np.searchsorted(edges, rectangles[:, :2]).T
    owner = np.repeat(np.arange(len(rectangles)), last - first)
    block = np.concatenate([np.arange(*span) for span in zip(first, last, strict=True)])
    last_rows = edges[1:] - 1
    low, _ = plan.mask.key_range(edges[:-1] // plan.group, q_len, kv_len)
    _, seen = plan.mask.key_range(last_rows // plan.group, q_len, kv_len)
    begin, end = np.clip(rectangles[owner, 2:].T, low[block], seen[block])
    some = begin < end
    # Pieces by block and first key, with an empty one at the end of what the block sees.
    pieces = np.stack([block, begin, end])[:, some]
    pieces = np.hstack([pieces, [np.arange(len(seen)), seen, seen]])
    block, begin, end = pieces[:, np.lexsort((pieces[2], pieces[1], pieces[0]))]
    reached = np.where(np.diff(block, prepend=-1) > 0, low[block], np.roll(end, 1))
    for wrong in np.flatnonzero(begin != reached):
        key = min(begin[wrong], reached[wrong])
        times = ((block == block[wrong]) & (begin <= key) & (key < end)).sum()
        raise ValueError(
            f"request {request}: packed row {last_rows[block[wrong]]} and key {key} are computed "
            f"{times} times; expected 1"
        )


def _require_written_once(plan: Plan, batch: HybridBatch) -> None:
    writes = [np.zeros(int(q_len) * plan.group, np.int32) for q_len in batch.q_lens]
    for _, items, tile_rows in _sides(plan):
        for item in items[items["split"] == 0]:
            writes[item["request"]][_rows(item, tile_rows, plan.group)] += 1
    for request, of_rows in enumerate(writes):
        for row in np.flatnonzero(of_rows != 1):
            raise ValueError(
                f"request {request}: packed row {row} is written {of_rows[row]} times; expected 1"
            )


def _require_joined(plan: Plan, batch: HybridBatch) -> None:
    """Check that what items leave to be joined is joined, each token's own and its prefix's."""
    tiles: dict[tuple[int, int], tuple[int, int, list[int]]] = {}
    tile_rows: dict[int, int] = {}
    for _, items, rows in _sides(plan):
        for item in items[items["num_splits"] == 0]:
            request = int(item["request"])
            tile_rows[request] = rows
            tile = request, int(item["row_begin"]) // rows
            partial_row, count, splits = tiles.get(tile, (int(item["partial_row"]), 0, []))
            if partial_row != item["partial_row"]:
                raise ValueError(f"tile {tile}: its splits have partial rows of two tiles")
            tiles[tile] = partial_row, count + 1, [*splits, int(item["split"])]
    for tile, (_, count, splits) in tiles.items():
        if sorted(splits) != list(range(count)):
            raise ValueError(f"tile {tile} has splits {sorted(splits)}; joins expect all of them")
    if (plan.joins is None) != (not batch.prefixes):
        raise ValueError(f"the plan has joins: {plan.joins is not None}; expected otherwise")
    if plan.joins is None:
        if tiles:
            raise ValueError(f"tile {min(tiles)} is left to joins, and there are none")
        return
    numbers = {tile: number for number, tile in enumerate(sorted(tiles))}
    table = [tiles[tile][:2] for tile in sorted(tiles)]
    if plan.joins.tiles.tolist() != [list(each) for each in table]:
        raise ValueError(f"joined tiles are {plan.joins.tiles.tolist()}; items say {table}")
    first_row, group, expected = batch.queries.q_begin, plan.group, []
    for prefix, (begin, end, _) in enumerate(
        batch.prefixes, batch.num_requests - len(batch.prefixes)
    ):
        for request in range(begin, end):
            for token in range(int(batch.q_lens[request])):
                row = int(first_row[request]) + token
                expected.append(
                    [
                        row,
                        token * group,
                        numbers[request, 0],
                        tile_rows[request],
                        (row - int(first_row[prefix])) * group,
                        numbers[prefix, 0],
                        tile_rows[prefix],
                        0,
                    ]
                )
    if plan.joins.tokens.tolist() != expected:
        raise ValueError("joined tokens are not those that share a prefix, or name other tiles")
