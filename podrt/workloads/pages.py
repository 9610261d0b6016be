"""Room for the keys of a batch: contiguous, or in pages that lie in random order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: A contiguous cache has room for a multiple of this, so that it can be seen as pages too.
ROOM_STEP = 16


def contiguous_rows(kv_lens: Sequence[int]) -> tuple[int, int]:
    """Return requests and tokens of a contiguous cache that has room for such lengths."""
    return len(kv_lens), -(-max(kv_lens) // ROOM_STEP) * ROOM_STEP


def shuffled_pages(
    kv_lens: Sequence[int] | npt.NDArray[np.int32],
    page_size: int,
    rng: np.random.Generator,
    *,
    num_spare: int = 0,
) -> tuple[npt.NDArray[np.int32], int]:
    """Return a block table over pages in random order, and the number of pages.

    Parameters
    ----------
    kv_lens : ints
        Keys of every request.
    page_size : int
        Tokens of a page.
    rng : Generator
        Source of the order.
    num_spare : int
        Pages beside those that requests own; entries that no request uses point at one of them.
    """
    counts = -(-np.asarray(kv_lens) // page_size)
    owned = int(counts.sum())
    order = rng.permutation(owned + num_spare).astype(np.int32)
    unused = order[-1] if num_spare else 0
    block_table = np.full((len(counts), int(counts.max(initial=0))), unused, np.int32)
    block_table[np.arange(block_table.shape[1]) < counts[:, None]] = order[:owned]
    return block_table, len(order)
