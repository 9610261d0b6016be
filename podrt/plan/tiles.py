"""`Tiles` of one side of a batch: their rows and the keys that they see.

Whole numbers are kept as float64, which is exact below 2**53: NumPy divides and rounds floats
several times faster than integers.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from podrt.spec.batch import QueryLengths
from podrt.spec.mask import Mask

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

#: NumPy sorts 16-bit numbers by radix, ten times faster than others.
RADIX_LIMIT = 2**16
#: But for so few.
_FEW = 40
#: Tiles in such numbers are kept, to compare the next batch's with.
_FEW_KEPT, _MOST_KEPT = 16, 4096

#: Tiles whose first keys are hidden begin at multiples of so many, or of less in smaller pages.
_WINDOW_STEP = 64


def window_step(page_size: int | None) -> int:
    """Return what the first key of a tile is a multiple of: kernels copy whole runs of keys.

    A divisor of the page size, so that no page is read of which no token sees a key; it may have
    been given to somebody else.
    """
    return _WINDOW_STEP if page_size is None else math.gcd(page_size, _WINDOW_STEP)


class Tiles:
    """At least one tile, in the order of the requests.

    Attributes
    ----------
    request : int array [tiles]
        The request that each tile is of.
    keys : float64 array [tiles]
        Keys from the first to the last that each tile sees; 0 is fine.
    kv_tile : int
        Keys of one step.
    row_begin : float64 array [tiles] or None
        First packed row of each tile; None where all are 0.
    key_begin : float64 array [tiles] or None
        First key of each tile; None where all are 0.
    rising_total : int or None
        Keys of all, where each tile is known to have more than the one before.
    grown : (Tiles, int) or None
        As many tiles each of which has so many keys less, where that is known.
    longest, total : int
        Keys of the longest tile, at least 1, and of all.
    longest_steps : int
        KV tiles of the longest tile; pieces of at most so many leave every tile whole.
    """

    __slots__ = (
        "_falling_keys",
        "_order",
        "_steps",
        "_steps_bytes",
        "key_begin",
        "keys",
        "kv_tile",
        "longest",
        "longest_steps",
        "request",
        "row_begin",
        "total",
    )

    def __init__(
        self,
        request: Indices,
        keys: Floats,
        kv_tile: int,
        row_begin: Floats | None = None,
        key_begin: Floats | None = None,
        *,
        rising_total: int | None = None,
        grown: tuple[Tiles, int] | None = None,
    ) -> None:
        self.request, self.row_begin, self.key_begin = request, row_begin, key_begin
        self.keys, self.kv_tile = keys, kv_tile
        self._order: Indices | None = None
        self._falling_keys: Floats | None = None
        if rising_total is not None:
            self.longest, self.total = int(keys.item(-1)) or 1, rising_total
            self._order, self._falling_keys = _falling(len(keys)), keys[::-1]
        elif grown is not None:
            before, growth = grown
            self._order = order = before.order()
            self.longest = int(keys.item(order.item(0))) or 1
            self.total = before.total + growth * len(keys)
        else:
            self.longest = int(keys.item(keys.argmax())) or 1
            self.total = int(np.add.reduce(keys))
        self.longest_steps = -(-self.longest // kv_tile)
        self._steps: Floats | None = None
        self._steps_bytes: bytes | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def steps(self) -> Floats:
        """KV tiles of each tile, float64 ``[tiles]``, at least 1."""
        if self._steps is None:
            self._steps = steps = self.keys / self.kv_tile
            np.ceil(steps, steps)
            np.maximum(steps, 1.0, out=steps)
        return self._steps

    @property
    def steps_bytes(self) -> bytes:
        """`steps` as bytes: what follows from them alone can be kept by these."""
        if self._steps_bytes is None:
            self._steps_bytes = self.steps.tobytes()
        return self._steps_bytes

    def order(self) -> Indices:
        """Return the indices of the tiles, longest first."""
        if self._order is None:
            self._order = longest_first(self.keys, self.longest)
        return self._order

    def falling_keys(self) -> Floats:
        """Return the keys of the tiles, longest first."""
        if self._falling_keys is None:
            self._falling_keys = self.keys[self.order()]
        return self._falling_keys


@lru_cache(maxsize=64)
def _falling(count: int) -> Indices:
    order = np.arange(count - 1, -1, -1)
    order.flags.writeable = False
    return order


def longest_first(keys: Floats, longest: int) -> Indices:
    """Return the stable order of whole numbers from 0 to `longest`, largest first, row by row."""
    if longest < RADIX_LIMIT and keys.shape[-1] > _FEW:
        return (~keys.astype(np.uint16)).argsort(kind="stable")
    return (-keys).argsort(kind="stable")


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


def tiles_of(
    rows: TileRows,
    kv_lens: npt.NDArray[np.int32],
    kv_tile: int,
    mask: Mask,
    page_size: int | None = None,
) -> Tiles:
    """Say which keys tiles see.

    Parameters
    ----------
    rows : TileRows
        The tiles.
    kv_lens : int32 array [requests of the batch]
        Keys of every request.
    kv_tile : int
        Keys of one step.
    mask : Mask
        Which keys a token sees.
    page_size : int or None
        Tokens of a page.
    """
    # Tokens are counted from the end of their requests, as if those had no others.
    picked = rows.picked
    kv_len: float | Floats
    if isinstance(picked, int):
        kv_len = float(kv_lens.item(picked))
    else:
        kv_len = kv_lens[picked].astype(np.float64)
    if rows.rising is not None and mask.causal and mask.window_left is None and not mask.tree:
        ends, sum_of_ends = rows.rising
        if kv_len + ends.item(0) >= 0:  # then each tile sees more keys than the one before
            total = int(sum_of_ends + len(ends) * kv_len)
            return Tiles(rows.request, ends + kv_len, kv_tile, rows.row_begin, rising_total=total)
    # Yet how many there are says whether a request may have a tree.
    q_len = rows.q_len() if mask.tree else 0
    keys = kv_len
    last_token = rows.last_token()
    if last_token is not None:
        keys = mask.key_end(last_token + q_len, q_len, kv_len)
    begin = None
    if mask.window_left is not None:
        begin = np.minimum(mask.key_begin(rows.first_token() + q_len, q_len, kv_len), keys)
        begin -= begin % window_step(page_size)
        keys = keys - begin
    if rows.row_begin is not None or not _FEW_KEPT <= len(keys) <= _MOST_KEPT:
        return Tiles(rows.request, keys, kv_tile, rows.row_begin, begin)
    # From one step of a server to the next its decodes grow alike, and stay in the same order.
    memory = _memory(len(keys), kv_tile, begin is not None)
    before, grown = memory.tiles, None
    if before is not None:
        growth = _common_growth(before.keys, keys)
        grown = None if growth is None else (before, growth)
    tiles = memory.tiles = Tiles(rows.request, keys, kv_tile, None, begin, grown=grown)
    return tiles


class _Memory:
    """The last tiles."""

    tiles: Tiles | None = None


@lru_cache(maxsize=16)
def _memory(num_tiles: int, kv_tile: int, has_window: bool) -> _Memory:
    return _Memory()


def _common_growth(before: Floats, now: Floats) -> int | None:
    """Return by how much all numbers have grown; None where some have more than others."""
    growth = now - before
    least: float = growth.item(growth.argmin())
    return int(least) if least == growth.item(growth.argmax()) else None


def _token_of(packed_row: Floats, group: int) -> Floats:
    token = packed_row / group
    np.floor(token, token)
    return token
