"""How many bytes prefill reads from memory: its keys once, and again what has left L2 meanwhile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.plan import Plan

Indices = npt.NDArray[np.intp]
Span = tuple[int, int]


class KeysRead(NamedTuple):
    """Keys that prefill reads from memory, over all heads: once, and beyond that."""

    unique: int
    repeated: int


def units_in_turn(plan: Plan) -> tuple[Indices, Indices]:
    """Return item and KV head of the units of prefill, in the order in which they are handed out.

    They are those of `podrt.plan.prefill_unit`, all at once.
    """
    heads, begin = plan.num_kv_heads, 0
    item_parts, head_parts = [], []
    for end in plan.prefill_runs:
        item_parts.append(np.tile(np.arange(begin, end), heads))
        head_parts.append(np.arange(heads).repeat(end - begin))
        begin = end
    left = np.arange(begin, len(plan.prefill))
    item_parts.append(left.repeat(heads))
    head_parts.append(np.tile(np.arange(heads), len(left)))
    return np.concatenate(item_parts), np.concatenate(head_parts)


def keys_read(plan: Plan, num_sms: int, resident_keys: int) -> KeysRead:
    """Return the keys that prefill reads, given its SMs and how many keys stay in L2.

    Units run in waves. A wave reads the keys of each of its requests and heads once; those that the
    wave before has read are still there if it read no more than stays.
    """
    item, head = units_in_turn(plan)
    request = plan.prefill["request"].astype(np.int64)[item] * plan.num_kv_heads + head
    ends = plan.prefill["kv_end"].astype(np.int64)[item]
    begins = np.zeros_like(ends)  # a piece of a tile shares keys with others of its request
    if plan.mask.window_left is not None:
        begins = plan.prefill["kv_begin"].astype(np.int64)[item]
    total_keys = _num_keys(_spans(request, begins, ends))
    if total_keys <= resident_keys:
        return KeysRead(total_keys, 0)
    read, before = 0, dict[int, Span]()
    for first in range(0, len(item), num_sms):
        units = slice(first, first + num_sms)
        wave = _spans(request[units], begins[units], ends[units])
        stayed = before if _num_keys(before) <= resident_keys else {}
        read += _num_keys(wave) - sum(_shared(keys, stayed.get(of)) for of, keys in wave.items())
        before = wave
    return KeysRead(total_keys, max(read - total_keys, 0))


def _spans(
    request: npt.NDArray[np.int64], begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> dict[int, Span]:
    """Return the first key of each request and head, and one past the last."""
    found: dict[int, Span] = {}
    for of, begin, end in zip(request.tolist(), begins.tolist(), ends.tolist(), strict=True):
        known = found.get(of, (begin, end))
        found[of] = min(known[0], begin), max(known[1], end)
    return found


def _num_keys(spans: dict[int, Span]) -> int:
    return sum(end - begin for begin, end in spans.values())


def _shared(keys: Span, others: Span | None) -> int:
    """Return how many keys are in both."""
    if others is None:
        return 0
    return max(min(keys[1], others[1]) - max(keys[0], others[0]), 0)
