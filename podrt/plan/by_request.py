"""Cutting each request by itself, whatever else is in the batch, and however large the GPU.

So the bits of a request's results depend on it alone. The other rules let a batch end sooner.
"""

from __future__ import annotations

import math

import numpy as np

from podrt.plan.cut import Cut, cut_steps, piece_keys
from podrt.plan.tiles import Floats, Tiles
from podrt.plan.tiling import RequestCuts

#: A decode of n keys is cut into pieces of about this times the square root of n. More of them cost
#: starts and merges, fewer leave slots of a small batch idle; both are equally far off then.
_DECODE_ROOT = 8.0
#: A prefill is cut until it has so many units by itself, as many as large GPUs have SMs, but a tile
#: of n keys into no more pieces than the square root of n over `_PREFILL_ROOT` squared.
_PREFILL_UNITS = 128
_PREFILL_ROOT = 32.0


def cut_decode_by_request(tiles: Tiles, cuts: RequestCuts) -> Cut | None:
    """Cut every tile into equal pieces, as many as its own keys ask for.

    Parameters
    ----------
    tiles : Tiles
        Tiles of decode.
    cuts : RequestCuts
        How far they are cut.
    """
    return _cut(tiles, _decode_limits(tiles.keys, tiles.kv_tile, cuts))


def cut_prefill_by_request(tiles: Tiles, num_kv_heads: int) -> Cut | None:
    """Cut the tiles of requests that have few units, each request into pieces of one length.

    Parameters
    ----------
    tiles : Tiles
        Tiles of prefill; those of a request lie together.
    num_kv_heads : int
        Units of a tile in one piece.
    """
    own_tiles = np.bincount(tiles.request)[tiles.request]
    firsts = np.concatenate(([True], tiles.request[1:] != tiles.request[:-1])).nonzero()[0]
    repeats = own_tiles[firsts]
    longest_keys = np.maximum.reduceat(tiles.keys, firsts).repeat(repeats)
    longest_steps = np.maximum.reduceat(tiles.steps, firsts).repeat(repeats)
    pieces = np.ceil(_PREFILL_UNITS / (own_tiles * num_kv_heads))
    np.minimum(pieces, np.ceil(np.sqrt(longest_keys) / _PREFILL_ROOT), out=pieces)
    return _cut(tiles, np.ceil(longest_steps / np.maximum(pieces, 1.0)))


def most_decode_pieces(most_keys: int, kv_tile: int, cuts: RequestCuts) -> int:
    """Return the most pieces of a tile of decode that has at most so many keys."""
    steps = np.arange(1.0, max(-(-most_keys // kv_tile), 1) + 1)
    fewest_keys = (steps - 1) * kv_tile + 1  # in so many steps, and so in the shortest pieces
    return int(cut_steps(steps, _decode_limits(fewest_keys, kv_tile, cuts))[0].max())


def most_prefill_partials(requests: int, num_tiles: int, most_keys: int, num_kv_heads: int) -> int:
    """Return the most partial results of requests with so many tiles of prefill together."""
    most = math.ceil(math.sqrt(most_keys) / _PREFILL_ROOT)
    units = -(-_PREFILL_UNITS // num_kv_heads)
    # A request has as many pieces as it wants, and one more a tile for rounding.
    return min(num_tiles * min(most, units), requests * units + num_tiles) if most > 1 else 0


def _cut(tiles: Tiles, limits: Floats) -> Cut | None:
    """Cut each tile into equal pieces of at most so many KV tiles."""
    counts, lengths = cut_steps(tiles.steps, limits)
    if counts.max() <= 1:
        return None
    return Cut(counts, lengths, int(piece_keys(tiles, lengths).max()))


def _decode_limits(keys: Floats, kv_tile: int, cuts: RequestCuts) -> Floats:
    if cuts.decode_piece_keys is not None:
        return np.full(len(keys), float(max(cuts.decode_piece_keys // kv_tile, 1)))
    limits = np.ceil(np.sqrt(keys) * (_DECODE_ROOT / kv_tile))
    return np.maximum(limits, 1.0)
