"""In which order the units of prefill are handed out: tiles that run at once are to share keys.

All tiles of a request read the same keys, head by head; with a window those that follow one another
do. Longest first over all heads, a wave of tiles reads the keys of all heads; where those do not
fit L2 together, each wave reads them from memory again. So requests go one after the other, by
their longest tile, and each head by head, longest tile first. What would then end late, a last head
with few long tiles, is made up for at the end: the shortest units are kept for it, longest first
over all heads.

A *run* is some items that follow one another and whose units go head by head; units of items behind
the last run go item by item. An item has all its heads in one run, so runs are known by where they
end in the list of items.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from podrt.plan.tiles import Tiles, longest_first
from podrt.plan.tiling import KeySharing
from podrt.plan.work import WorkList, keys_of, taken
from podrt.spec.attention import AttentionSpec
from podrt.spec.types import ELEMENT_BYTES

#: A lane of a warp finds each run, and one where the last of them ends.
MAX_RUNS = 31
#: All units item by item.
NO_RUNS: tuple[int, ...] = ()

#: Units with at most this part of the longest one's keys may be kept for the end.
_SHORT_PART = 2
#: Decode with more than so many times the keys of prefill's tiles takes over three times as long: a
#: key costs prefill less. Gains were measured from four times on, neither gain nor loss at 2.6
#: (bench/results/h100/gemma-tiles.txt).
_HIDING_KEYS = 2
#: More than any request has keys.
_MANY_KEYS = 2**31

Ints = npt.NDArray[np.int64]


def prefill_unit(unit: int, runs: tuple[int, ...], num_kv_heads: int) -> tuple[int, int]:
    """Return item and KV head of a unit of prefill, as the kernels find them (common/unit.cuh).

    Parameters
    ----------
    unit : int
        Number of the unit in the order in which they are handed out.
    runs : tuple of int
        `Plan.prefill_runs`.
    num_kv_heads : int
        KV heads.
    """
    passed = bisect_right(runs, unit // num_kv_heads)
    if passed == len(runs):
        return divmod(unit, num_kv_heads)
    begin = runs[passed - 1] if passed else 0
    kv_head, item = divmod(unit - begin * num_kv_heads, runs[passed] - begin)
    return begin + item, kv_head


def order_to_share_keys(
    items: WorkList, tiles: Tiles, spec: AttentionSpec, sharing: KeySharing, decode_keys: int = 0
) -> tuple[WorkList, tuple[int, ...]]:
    """Return items of prefill in the order in which they are handed out, and `Plan.prefill_runs`.

    Longest first over all heads where order changes nothing: all keys stay in L2, there is one
    head, or no two items share keys. Likewise where all units run at once, unless decode takes so
    much longer that nothing waits for the longest: neighbouring SMs then do better on one head.

    Parameters
    ----------
    items : structured array of `WORK_ITEM`
        At least one, longest first.
    tiles : Tiles
        What they are pieces of.
    spec : AttentionSpec
        The attention layer.
    sharing : KeySharing
        What stays in L2, and what runs at once.
    decode_keys : int
        Keys of all tiles of decode beside them.
    """
    heads = spec.num_kv_heads
    if heads == 1:
        return items, NO_RUNS
    are_hidden = decode_keys > _HIDING_KEYS * tiles.total
    if len(items) * heads <= sharing.units_at_once and not are_hidden:
        return items, NO_RUNS
    if tiles.row_begin is None and len(items) == len(tiles):  # each the only one of its request
        return items, NO_RUNS
    key_bytes = (spec.head_dim + spec.value_dim) * ELEMENT_BYTES[spec.dtype]
    resident_keys = sharing.resident_bytes // (heads * key_bytes)
    if len(items) == len(tiles) and tiles.request[0] == tiles.request[-1]:
        tiles_at_once = -(-sharing.units_at_once // heads)
        return items, _run_of_one_request(tiles, tiles_at_once, resident_keys)
    return _order_requests(items, tiles, resident_keys)


def _run_of_one_request(tiles: Tiles, tiles_at_once: int, resident_keys: int) -> tuple[int, ...]:
    """Return the one run of whole tiles, which are in order as they are: most batches have it."""
    if _keys_at_once(tiles, tiles_at_once) <= resident_keys:
        return NO_RUNS
    most_keys = min(tiles.longest // _SHORT_PART, resident_keys)
    num_long = int(np.count_nonzero(tiles.keys > most_keys))
    return (num_long,) if num_long else NO_RUNS  # none is long where none sees a key


def _keys_at_once(tiles: Tiles, tiles_at_once: int) -> int:
    """Return the most keys of a request that so many of its tiles, one after the other, see."""
    if tiles.key_begin is None:
        return tiles.longest
    last = np.minimum(np.arange(len(tiles)) + max(tiles_at_once - 1, 0), len(tiles) - 1)
    return int(((tiles.key_begin + tiles.keys)[last] - tiles.key_begin).max())


def _order_requests(
    items: WorkList, tiles: Tiles, resident_keys: int
) -> tuple[WorkList, tuple[int, ...]]:
    """Return items request by request, short ones behind, and the runs of the first requests."""
    changes = (tiles.request[1:] != tiles.request[:-1]).nonzero()[0] + 1
    firsts = np.concatenate(((0,), changes))  # the tiles of a request lie together
    longest = np.maximum.reduceat(tiles.keys, firsts)
    if np.add.reduce(longest) <= resident_keys:
        return items, NO_RUNS
    by_length = tiles.request[firsts[longest_first(longest, tiles.longest)]]
    turns = np.empty(int(tiles.request[-1]) + 1, np.intp)
    turns[by_length] = np.arange(len(by_length))
    turn = turns[items["request"]]
    has_windows = tiles.key_begin is not None
    num_in_turn = len(items) - _num_last(items, resident_keys, has_windows=has_windows)
    counts = np.bincount(turn[:num_in_turn])
    turn[num_in_turn:] = len(by_length)
    runs = tuple(np.add.accumulate(counts[counts > 0])[:MAX_RUNS].tolist())
    if (turn[1:] >= turn[:-1]).all():  # as of prompts of one length
        return items, runs
    return taken(items, turn.argsort(kind="stable")), runs


def _num_last(items: WorkList, resident_keys: int, *, has_windows: bool) -> int:
    """Return how many of the items, which are longest first, are kept for the end."""
    keys = keys_of(items)
    num_short = int(np.count_nonzero(keys <= keys[0] // _SHORT_PART))
    if num_short == 0:
        return 0
    short = items[: -num_short - 1 : -1]
    begins = short["kv_begin"].astype(np.int64) if has_windows else None
    touched = _keys_touched(
        short["request"].astype(np.int64), short["kv_end"].astype(np.int64), begins
    )
    return int(touched.searchsorted(resident_keys, "right"))


def _keys_touched(request: Ints, ends: Ints, begins: Ints | None = None) -> Ints:
    """Return how many keys the first 1, 2, 3, ... items need.

    Parameters
    ----------
    request : int64 array [items]
        The request of each item.
    ends : int64 array [items]
        One past the last key of each.
    begins : int64 array [items], optional
        The first key of each, where windows hide others; all between the lowest and the highest of
        a request are taken to be needed. None: from key 0 on.
    """
    by_request = request.argsort(kind="stable")
    request = request[by_request]
    # What comes before in the same request reaches so far, however far other requests do.
    reached = np.maximum.accumulate(request * _MANY_KEYS + ends[by_request]) - request * _MANY_KEYS
    if begins is not None:
        lowest = np.maximum.accumulate(request * _MANY_KEYS - begins[by_request])
        reached += lowest - request * _MANY_KEYS
    added = reached.copy()
    added[1:] -= reached[:-1] * (request[1:] == request[:-1])
    in_order = np.empty_like(added)
    in_order[by_request] = added
    return np.add.accumulate(in_order)
