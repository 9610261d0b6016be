"""`Tiles` of one side of a batch: their rows and the keys that they see.

Whole numbers are kept as float64, which is exact below 2**53: NumPy divides and rounds floats
several times faster than integers.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.plan.tile_rows import TileRows
from podrt.spec.mask import Mask

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

#: NumPy sorts 16-bit numbers by radix, ten times faster than others.
RADIX_LIMIT = 2**16
#: But for so few.
_FEW = 40
#: So many tiles are kept, to compare the next batch's with.
MOST_KEPT = 4096

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
    of_prefixes : int
        How many, the last ones, are of shared prefixes.
    rising_total : int or None
        Keys of all, where each tile is known to have more than the one before.
    grown : (Tiles, int) or None
        As many tiles each of which has so many keys less, where that is known.
    longest, total : int
        Keys of the longest tile, at least 1, and of all.
    longest_steps : int
        KV tiles of the longest tile; pieces of at most so many leave every tile whole.
    derived : dict
        What others have made of them last, by what made it: to be looked up, not changed.
    """

    __slots__ = (
        "_falling_keys",
        "_order",
        "_steps",
        "_steps_bytes",
        "derived",
        "key_begin",
        "keys",
        "kv_tile",
        "longest",
        "longest_steps",
        "of_prefixes",
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
        of_prefixes: int = 0,
        *,
        rising_total: int | None = None,
        grown: tuple[Tiles, int] | None = None,
    ) -> None:
        self.request, self.row_begin, self.key_begin = request, row_begin, key_begin
        self.keys, self.kv_tile, self.of_prefixes = keys, kv_tile, of_prefixes
        self.derived: dict[Hashable, Any] = {}
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
            steps = self.keys / self.kv_tile
            np.ceil(steps, steps)
            np.maximum(steps, 1.0, out=steps)
            self._steps = steps  # whole: other threads may have these tiles
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


def tiles_of(
    rows: TileRows,
    kv_lens: npt.NDArray[np.int32],
    kv_tile: int,
    mask: Mask,
    page_size: int | None = None,
    first_prefix: int | None = None,
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
    first_prefix : int or None
        Tokens of requests from this one on see all keys.
    """
    # Tokens are counted from the end of their requests, as if those had no others.
    picked = rows.picked
    kv_len: Any
    if isinstance(picked, int):
        kv_len = float(kv_lens.item(picked))
    else:
        kv_len = kv_lens[picked].astype(np.float64)
    of_prefixes = 0
    if first_prefix is not None:
        of_prefixes = len(rows.request) - int(rows.request.searchsorted(first_prefix))
    is_plain = mask.causal and mask.window_left is None and not (mask.tree or of_prefixes)
    if rows.rising is not None and is_plain:
        ends, sum_of_ends = rows.rising
        if kv_len + ends.item(0) >= 0:  # then each tile sees more keys than the one before
            total = int(sum_of_ends + len(ends) * kv_len)
            return Tiles(rows.request, ends + kv_len, kv_tile, rows.row_begin, rising_total=total)
    # Yet how many there are says whether a request may have a tree.
    q_len = rows.q_len() if mask.tree else 0
    keys: Floats = kv_len
    last_token = rows.last_token()
    if last_token is not None:
        keys = mask.key_end(last_token + q_len, q_len, kv_len)
        if of_prefixes:
            keys[-of_prefixes:] = kv_len if isinstance(picked, int) else kv_len[-of_prefixes:]
    begin = None
    if mask.window_left is not None:
        begin = np.minimum(mask.key_begin(rows.first_token() + q_len, q_len, kv_len), keys)
        begin -= begin % window_step(page_size)
        keys = keys - begin
    if rows.row_begin is not None or len(keys) > MOST_KEPT:
        return Tiles(rows.request, keys, kv_tile, rows.row_begin, begin, of_prefixes)
    # From one step of a server to the next its decodes grow alike, and stay in the same order.
    memory = _memory(len(keys), kv_tile, begin is not None)
    last, grown = memory.last, None  # read once: other threads write it
    if last is not None:
        before, picked_before = last
        growth = _common_growth(before.keys, keys)
        is_alike = growth == 0 and begin is None and of_prefixes == before.of_prefixes == 0
        if is_alike and _are_same(picked_before, rows.picked):
            return before
        grown = None if growth is None else (before, growth)
    tiles = Tiles(rows.request, keys, kv_tile, None, begin, of_prefixes, grown=grown)
    memory.last = tiles, rows.picked
    return tiles


class _Memory:
    """The last tiles, with what picks their requests; None before the first."""

    last: tuple[Tiles, int | slice | Indices] | None = None


@lru_cache(maxsize=16)
def _memory(num_tiles: int, kv_tile: int, has_window: bool) -> _Memory:
    return _Memory()


def _are_same(before: object, now: object) -> bool:
    """Whether two ways to pick requests pick the same, as far as that is told at once."""
    return before is now or (isinstance(before, slice) and isinstance(now, slice) and before == now)


def _common_growth(before: Floats, now: Floats) -> int | None:
    """Return by how much all numbers have grown; None where some have more than others."""
    growth = now - before
    least: float = growth.item(growth.argmin())
    return int(least) if least == growth.item(growth.argmax()) else None
