"""Counters and partial results: the parts have room and do not overlap, whoever shares them."""

from __future__ import annotations

import numpy as np
import pytest

from podrt.kernels.portable.host import NUM_COUNTERS
from podrt.runtime.scratch import SCRATCH_ALIGNMENT_BYTES, counter_bytes, place, scratch_bytes

HEAD_DIMS = (32, 64, 96, 128, 256)
#: A merge has at least two splits of a decode tile's 8 rows, and two 32-bit counters.
LEAST_ROWS_OF_A_MERGE, BYTES_OF_A_MERGE = 16, 8


def sizes() -> list[int]:
    rng = np.random.default_rng(0)
    return [0, 1, 7, 8, 16, 63, 64, 65, *(int(n) for n in np.exp(rng.uniform(0, 16, 300)))]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("more", [0, 1, 255, 4097, 1 << 20])
def test_parts_lie_one_after_the_other_within_the_bytes(head_dim: int, more: int) -> None:
    pointer = 256 * 12345
    for rows in sizes():
        nbytes = scratch_bytes(rows, head_dim) + more
        scratch = place(pointer, nbytes, head_dim)
        assert scratch.rows >= rows
        counters = (scratch.counters, 4 * NUM_COUNTERS)
        most_merges = scratch.rows // LEAST_ROWS_OF_A_MERGE
        merges = (scratch.merge_counters, most_merges * BYTES_OF_A_MERGE)
        lse = (scratch.partial_lse, 4 * scratch.rows)
        partial_o = (scratch.partial_o, 4 * head_dim * scratch.rows)
        parts = [counters, merges, lse, partial_o]
        assert parts == sorted(parts)
        ends = [begin + size for begin, size in parts]
        assert all(end <= begin for end, (begin, _) in zip(ends, parts[1:], strict=False))
        assert ends[-1] <= pointer + nbytes
        assert all(begin % 16 == 0 for begin, _ in parts)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_all_counters_are_among_those_that_are_cleared(head_dim: int) -> None:
    for rows in sizes():
        nbytes = scratch_bytes(rows, head_dim)
        scratch = place(0, nbytes, head_dim)
        end = scratch.merge_counters + scratch.rows // LEAST_ROWS_OF_A_MERGE * BYTES_OF_A_MERGE
        assert end <= counter_bytes(nbytes) == scratch.partial_lse


def test_objects_that_share_memory_agree_on_what_is_a_counter() -> None:
    """Whatever their head_dim: what one leaves in partial results is no other's counter."""
    for rows in sizes():
        nbytes = scratch_bytes(rows, 256)
        placed = [place(0, nbytes, head_dim) for head_dim in HEAD_DIMS]
        assert len({scratch[:3] for scratch in placed}) == 1
        first_result = placed[0].partial_lse
        assert all(min(s.partial_lse, s.partial_o) >= first_result for s in placed)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_more_rows_need_no_less(head_dim: int) -> None:
    needed = [scratch_bytes(rows, head_dim) for rows in sorted(sizes())]
    assert needed == sorted(needed)
    assert all(nbytes % SCRATCH_ALIGNMENT_BYTES == 0 for nbytes in needed)
