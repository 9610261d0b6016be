"""How many bytes prefill reads from memory: its keys once, and again what has left L2 meanwhile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.plan import Plan

Indices = npt.NDArray[np.intp]


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
    unique = _longest(request, ends)
    total_keys = sum(unique.values())
    if total_keys <= resident_keys:
        return KeysRead(total_keys, 0)
    read, before = 0, dict[int, int]()
    for first in range(0, len(item), num_sms):
        wave = _longest(request[first : first + num_sms], ends[first : first + num_sms])
        stayed = before if sum(before.values()) <= resident_keys else {}
        read += sum(max(keys - stayed.get(of, 0), 0) for of, keys in wave.items())
        before = wave
    return KeysRead(total_keys, max(read - total_keys, 0))


def _longest(request: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> dict[int, int]:
    """Return the keys of each request and head."""
    found: dict[int, int] = {}
    for of, end in zip(request.tolist(), ends.tolist(), strict=True):
        found[of] = max(found.get(of, 0), end)
    return found
