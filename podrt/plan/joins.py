"""`Joins`: rows whose keys lie in two tiles, one of their request and one of the prefix it shares.

All items of such tiles leave partial results. When the launch has ended, another kernel merges for
each row those of both its tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.spec.batch import HybridBatch

Int32Array = npt.NDArray[np.int32]

#: Fields of a joined token, all int32, in memory order; rendered into the kernel as a struct.
JOINED_TOKEN_FIELDS = (
    ("token", "row of q"),
    ("own_row", "packed row, in its request, of the token's first query head"),
    ("own_tile", "the request's first tile among all joined ones; the others follow"),
    ("own_tile_rows", "packed rows of a tile"),
    ("prefix_row", "the same for the prefix"),
    ("prefix_tile", ""),
    ("prefix_tile_rows", ""),
    ("unused", ""),
)
#: Those of a joined tile.
JOINED_TILE_FIELDS = (
    ("partial_row", "first row of the tile's first split in the partial buffers"),
    ("num_splits", "how many items share the tile"),
)


class Joins(NamedTuple):
    """What is left to merge.

    Attributes
    ----------
    tokens : int32 array [tokens, 8]
        `JOINED_TOKEN_FIELDS` of each token of a request with a prefix.
    tiles : int32 array [tiles, 2]
        `JOINED_TILE_FIELDS` of the tiles of those requests and of prefixes; those of one request
        follow one another.
    """

    tokens: Int32Array
    tiles: Int32Array


def joins_bytes(tokens: int, tiles: int) -> int:
    """Return the bytes of joins on the GPU."""
    return 4 * (tokens * len(JOINED_TOKEN_FIELDS) + tiles * len(JOINED_TILE_FIELDS))


class SideWork(NamedTuple):
    """Items of one side, which `leave_to_join` changes, and the packed rows of its tiles."""

    items: npt.NDArray[Any]
    tile_rows: int


def leave_to_join(
    sides: Sequence[SideWork], partial_rows: int, batch: HybridBatch, group: int
) -> tuple[int, Joins]:
    """Have tiles of prefixes, and of requests that share them, leave partial results to be joined.

    Parameters
    ----------
    sides : sequence of SideWork
        Items of the batch as laid out for the requests that it has.
    partial_rows : int
        Rows of partial results that they need.
    batch : HybridBatch
        With prefixes.
    group : int
        Query heads per KV head.

    Returns
    -------
    partial_rows : int
        Rows that they need now: tiles in one piece have some too.
    joins : Joins
        What is left to merge.
    """
    first_prefix = batch.first_prefix
    assert first_prefix is not None
    is_joined = np.zeros(batch.num_requests, bool)
    is_joined[first_prefix:] = True
    for begin, end, _ in batch.prefixes:
        is_joined[begin:end] = True
    found: list[Int32Array] = []  # [request, row_begin, partial_row, num_splits] of tiles
    tile_rows = np.zeros(batch.num_requests, np.int32)
    for items, rows in sides:
        chosen = is_joined[items["request"]].nonzero()[0]
        whole = chosen[items["num_splits"][chosen] == 1]
        items["partial_row"][whole] = partial_rows + rows * np.arange(len(whole))
        partial_rows += rows * len(whole)
        first = items[chosen[items["split"][chosen] == 0]]
        fields = ("request", "row_begin", "partial_row", "num_splits")
        found.append(np.stack([first[name] for name in fields], 1))
        items["num_splits"][chosen] = 0
        tile_rows[items["request"][chosen]] = rows
        items["q_len"][items["request"] >= first_prefix] *= -1
    tiles = np.concatenate(found)
    tiles = tiles[np.lexsort((tiles[:, 1], tiles[:, 0]))]
    first_tile = tiles[:, 0].searchsorted(np.arange(batch.num_requests))
    tokens = [
        _tokens(batch, prefix, first_prefix + number, first_tile, tile_rows, group)
        for number, prefix in enumerate(batch.prefixes)
    ]
    return partial_rows, Joins(np.concatenate(tokens), np.ascontiguousarray(tiles[:, 2:]))


def _tokens(
    batch: HybridBatch,
    prefix: tuple[int, int, int],
    number: int,
    first_tile: npt.NDArray[np.intp],
    tile_rows: Int32Array,
    group: int,
) -> Int32Array:
    """Return `JOINED_TOKEN_FIELDS` of the tokens that share a prefix, which is request `number`."""
    members = np.arange(prefix[0], prefix[1])
    owner = members.repeat(batch.q_lens[members])
    first_row = batch.queries.q_begin
    token = first_row[number] + np.arange(len(owner))
    rows = np.zeros((len(owner), len(JOINED_TOKEN_FIELDS)), np.int32)
    rows[:, 0] = token
    rows[:, 1] = (token - first_row[owner]) * group
    rows[:, 2], rows[:, 3] = first_tile[owner], tile_rows[owner]
    rows[:, 4] = (token - first_row[number]) * group
    rows[:, 5], rows[:, 6] = first_tile[number], tile_rows[number]
    return rows
