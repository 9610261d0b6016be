"""`TileRows`: which query rows the tiles of one side have; follows from query lengths alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from podrt.spec.query_lengths import QueryLengths

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


class TileRows:
    """Query rows of the tiles of some requests; follows from query lengths alone.

    Parameters
    ----------
    queries : QueryLengths
        Of the batch.
    requests : int array [chosen]
        Requests to tile, ascending, at least one, each with query tokens.
    tile_rows : int
        Packed query rows of a tile.
    group : int
        Query heads per KV head.
    one_each : bool
        Each request is known to fit into one tile.

    Attributes
    ----------
    request : int array [tiles]
        The request that each tile is of.
    picked : int, slice or int array [tiles]
        What picks those of arrays with an element a request, in the cheapest way; an int where all
        tiles are of one request.
    row_begin : float64 array [tiles] or None
        First packed row of each tile; None where all are 0.
    rising : (float64 array [tiles], float) or None
        Of one request, as most batches with prefill have: where each tile ends, counted from the
        end of its request and rising from tile to tile, and the sum of that. None where tiles may
        end alike.
    """

    __slots__ = (
        "_first_token",
        "_group",
        "_last_token",
        "_q_lens",
        "picked",
        "request",
        "rising",
        "row_begin",
        "tile_rows",
    )

    def __init__(
        self,
        queries: QueryLengths,
        requests: Indices,
        tile_rows: int,
        group: int,
        *,
        one_each: bool = False,
    ) -> None:
        # Not the object itself, in whose memory this is kept.
        self._q_lens, self.tile_rows, self._group = queries.q_lens, tile_rows, group
        self.request = requests
        self.picked: int | slice | Indices = _picked(requests)
        self.row_begin: Floats | None = None
        self.rising: tuple[Floats, float] | None = None
        self._first_token: Floats | None = None
        self._last_token: Floats | None = None
        if not one_each:
            if len(requests) == 1:
                self._tile_one(requests.item(0))
            else:
                self._tile()

    def _tile_one(self, request: int) -> None:
        """Tile one request."""
        q_len, tile_rows = self._q_lens.item(request), self.tile_rows
        num_tiles = -(-q_len * self._group // tile_rows)
        if num_tiles == 1:
            return
        self.request, self.picked = self.request.repeat(num_tiles), request
        self.row_begin = _multiples(num_tiles, tile_rows)
        tile_tokens, rest = divmod(tile_rows, self._group)
        if not rest:  # no token has rows in two tiles
            others = num_tiles - 1
            ends = _multiples(num_tiles, tile_tokens) + float(tile_tokens - q_len)
            ends[others] = 0.0
            self.rising = ends, float(others * (num_tiles * tile_tokens - 2 * q_len) // 2)

    def _tile(self) -> None:
        """Tile several requests."""
        requests, tile_rows = self.request, self.tile_rows
        counts = self._q_lens[requests].astype(np.float64)
        counts *= self._group
        counts /= tile_rows
        np.ceil(counts, counts)
        firsts = np.add.accumulate(counts)
        num_tiles = int(firsts.item(-1))
        if num_tiles == len(requests):
            return
        repeats = counts.astype(np.intp)
        firsts -= counts
        self.request = self.picked = requests.repeat(repeats)
        self.row_begin = np.arange(num_tiles, dtype=np.float64)
        self.row_begin -= firsts.repeat(repeats)
        self.row_begin *= tile_rows

    def q_len(self) -> Floats:
        """Return the query tokens of each tile's request."""
        return self._q_lens[self.request].astype(np.float64)

    def first_token(self) -> Floats:
        """Return the first token of each tile, counted as `last_token`."""
        if self._first_token is None:
            token = -self.q_len()
            if self.row_begin is not None:
                token += _token_of(self.row_begin, self._group)
            self._first_token = token
        return self._first_token

    def last_token(self) -> Floats | None:
        """Return the last token of each tile, None where no tile ends before its request.

        Counted from the end of its request: -1 is its last one, more is beyond.
        """
        if self._last_token is None and self.row_begin is not None:
            token = _token_of(self.row_begin + (self.tile_rows - 1), self._group)
            token -= self.q_len()
            self._last_token = token
        return self._last_token


def _picked(requests: Indices) -> slice | Indices:
    first, last = requests.item(0), requests.item(-1)
    return slice(first, last + 1) if last - first == len(requests) - 1 else requests


@lru_cache(maxsize=64)  # prompts are mostly cut into chunks of about one size
def _multiples(count: int, step: int) -> Floats:
    """Return 0, step, 2 step, ...; read-only."""
    multiples = np.arange(0, count * step, step, dtype=np.float64)
    multiples.flags.writeable = False
    return multiples


def _token_of(packed_row: Floats, group: int) -> Floats:
    token = packed_row / group
    np.floor(token, token)
    return token
