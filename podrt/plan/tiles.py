"""`Tiles` of one side of a batch: their rows and the keys that they see.

Whole numbers are kept as float64, which is exact below 2**53: NumPy divides and rounds floats
several times faster than integers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.spec.mask import Mask

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

#: NumPy sorts 16-bit numbers by radix, ten times faster than others.
RADIX_LIMIT = 2**16


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
    longest, total : int
        Keys of the longest tile, at least 1, and of all.
    longest_steps : int
        KV tiles of the longest tile; pieces of at most so many leave every tile whole.
    """

    __slots__ = (
        "_falling_keys",
        "_order",
        "_steps",
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
    ) -> None:
        self.request, self.row_begin, self.key_begin = request, row_begin, key_begin
        self.keys, self.kv_tile = keys, kv_tile
        self.longest = int(keys[keys.argmax()]) or 1
        self.longest_steps = -(-self.longest // kv_tile)
        self.total = int(np.add.reduce(keys))
        self._order: Indices | None = None
        self._falling_keys: Floats | None = None
        self._steps: Floats | None = None

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


def longest_first(keys: Floats, longest: int) -> Indices:
    """Return the stable order of whole numbers from 0 to `longest`, largest first, row by row."""
    if longest < RADIX_LIMIT:
        return (~keys.astype(np.uint16)).argsort(kind="stable")
    return (-keys).argsort(kind="stable")


def tiles_of(
    requests: Indices,
    q_lens: npt.NDArray[Any],
    kv_lens: npt.NDArray[Any],
    tile_rows: int,
    kv_tile: int,
    group: int,
    mask: Mask,
    one_each: bool,
    page_size: int | None = None,
) -> Tiles:
    """Tile some requests of a batch.

    Parameters
    ----------
    requests : int array [chosen]
        Requests to tile, at least one, each with query tokens.
    q_lens, kv_lens : int32 arrays [requests of the batch]
        Their query tokens and keys.
    tile_rows : int
        Packed query rows of a tile.
    kv_tile : int
        Keys of one step.
    group : int
        Query heads per KV head.
    mask : Mask
        Which keys a token sees.
    one_each : bool
        Each request is known to fit into one tile.
    page_size : int or None
        Tokens of a page.
    """
    tiles = _from_first_key(requests, q_lens, kv_lens, tile_rows, kv_tile, group, mask, one_each)
    if mask.window_left is None:
        return tiles
    return _behind_windows(tiles, q_lens, kv_lens, group, mask, window_step(page_size))


def _from_first_key(
    requests: Indices,
    q_lens: npt.NDArray[Any],
    kv_lens: npt.NDArray[Any],
    tile_rows: int,
    kv_tile: int,
    group: int,
    mask: Mask,
    one_each: bool,
) -> Tiles:
    """Return the tiles of `tiles_of` as if no window hid their first keys."""
    if len(requests) == 1:
        return _tiles_of_one(requests, q_lens, kv_lens, tile_rows, kv_tile, group, mask)
    kv_len = kv_lens[requests].astype(np.float64)
    if one_each:
        return Tiles(requests, kv_len, kv_tile)
    q_len = q_lens[requests].astype(np.float64)
    counts = q_len * group
    counts /= tile_rows
    np.ceil(counts, counts)
    num_tiles = int(np.add.reduce(counts))
    if num_tiles == len(requests):
        return Tiles(requests, kv_len, kv_tile)
    repeats = counts.astype(np.intp)
    firsts = np.add.accumulate(counts)
    firsts -= counts
    row_begin = np.arange(num_tiles, dtype=np.float64)
    row_begin -= firsts.repeat(repeats)
    row_begin *= tile_rows
    last_token = _last_token(row_begin, tile_rows, group)
    keys = mask.key_end(last_token, q_len.repeat(repeats), kv_len.repeat(repeats))
    return Tiles(requests.repeat(repeats), keys, kv_tile, row_begin)


def _behind_windows(
    tiles: Tiles,
    q_lens: npt.NDArray[Any],
    kv_lens: npt.NDArray[Any],
    group: int,
    mask: Mask,
    step: int,
) -> Tiles:
    """Return tiles without the keys that their first token, and so every other, does not see."""
    first_token = np.zeros(len(tiles))
    if tiles.row_begin is not None:
        np.floor(tiles.row_begin / group, first_token)
    q_len, kv_len = (lengths[tiles.request].astype(np.float64) for lengths in (q_lens, kv_lens))
    begin = np.minimum(mask.key_begin(first_token, q_len, kv_len), tiles.keys)
    begin -= begin % step
    return Tiles(tiles.request, tiles.keys - begin, tiles.kv_tile, tiles.row_begin, begin)


def _tiles_of_one(
    requests: Indices,
    q_lens: npt.NDArray[Any],
    kv_lens: npt.NDArray[Any],
    tile_rows: int,
    kv_tile: int,
    group: int,
    mask: Mask,
) -> Tiles:
    """Tile the one prefill that most batches have, at half the cost."""
    request = requests[0]
    q_len, kv_len = int(q_lens[request]), int(kv_lens[request])
    num_tiles = -(-q_len * group // tile_rows)
    row_begin, last_token = _rows_of_one(num_tiles, tile_rows, group)
    keys = mask.key_end(last_token, q_len, kv_len)
    return Tiles(requests.repeat(num_tiles), keys, kv_tile, row_begin)


@lru_cache(maxsize=16)  # prompts are mostly cut into chunks of one size
def _rows_of_one(num_tiles: int, tile_rows: int, group: int) -> tuple[Floats, Floats]:
    """Return the first row and the last token of so many tiles of a request."""
    row_begin = np.arange(0, num_tiles * tile_rows, tile_rows, dtype=np.float64)
    last_token = _last_token(row_begin, tile_rows, group)
    row_begin.flags.writeable = last_token.flags.writeable = False
    return row_begin, last_token


def _last_token(row_begin: Floats, tile_rows: int, group: int) -> Floats:
    """Return the last token of each tile; beyond its request if the tile is not full."""
    token = row_begin + (tile_rows - 1)
    token /= group
    np.floor(token, token)
    return token
