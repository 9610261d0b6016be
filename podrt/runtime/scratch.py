"""Counters and partial results: what launches of one stream share, and where it lies.

Where the parts lie follows from the number of bytes and `value_dim` alone, and the counters' place
from the bytes alone. So objects of different limits and layers may share one piece of memory, as
long as their launches follow one another: counters are zero between launches, and nothing else need
last.
"""

from __future__ import annotations

from typing import NamedTuple

from podrt.kernels.portable.host import NUM_COUNTERS

SCRATCH_ALIGNMENT_BYTES = _ALIGN = 256
_FLOAT_BYTES = 4
_COUNTER_BYTES = -(-4 * NUM_COUNTERS // _ALIGN) * _ALIGN
#: One byte of so many is for counters of merges. A merge has two counters and at least two splits
#: of 8 rows of 32 columns, 8 bytes beside 2112.
_BYTES_FOR_EACH_OF_MERGES = 256


class Scratch(NamedTuple):
    """Addresses of the parts, and how many rows of partial results (of one KV head) find room."""

    counters: int
    merge_counters: int
    partial_lse: int
    partial_o: int
    rows: int


def scratch_bytes(rows: int, value_dim: int) -> int:
    """Return the bytes that `rows` rows of partial results and all counters need.

    Parameters
    ----------
    rows : int
        Partial rows of the plan times KV heads.
    value_dim : int
        Elements of a row.
    """
    partials = rows * (value_dim + 1) * _FLOAT_BYTES + 2 * _ALIGN
    others = _COUNTER_BYTES + 2 * _ALIGN
    share = _BYTES_FOR_EACH_OF_MERGES
    return _rounded_up((partials + others) * share // (share - 1) + share)


def counter_bytes(nbytes: int) -> int:
    """Return how many bytes at the start are counters, which must be zero to begin with."""
    return _COUNTER_BYTES + _rounded_up(nbytes // _BYTES_FOR_EACH_OF_MERGES)


def place(pointer: int, nbytes: int, value_dim: int) -> Scratch:
    """Lay out memory of at least ``scratch_bytes(0, value_dim)`` bytes, aligned to 256."""
    counters_end = counter_bytes(nbytes)
    room = nbytes - counters_end - _ALIGN
    rows = max(room // ((value_dim + 1) * _FLOAT_BYTES), 0)
    partial_lse = pointer + counters_end
    partial_o = partial_lse + _rounded_up(rows * _FLOAT_BYTES)
    return Scratch(pointer, pointer + _COUNTER_BYTES, partial_lse, partial_o, rows)


def _rounded_up(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN
