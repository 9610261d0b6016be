"""The flat page table that `HybridBatch.page_begin` points into."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def flat_page_table(block_table: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """View a block table as one run of entries, as a kernel that knows its row stride does.

    Parameters
    ----------
    block_table : int32 array [requests, max_pages]
        Rows may be strided; entries of a row lie next to each other.

    Returns
    -------
    int32 array [(requests - 1) * row stride + max_pages]
        Read-only view without a copy; entries between two rows are whatever lies there.

    Raises
    ------
    ValueError
        `block_table` is not two-dimensional, or its rows lack unit stride or lie in reverse.
    """
    if block_table.ndim != 2:
        raise ValueError(f"block_table has shape {block_table.shape}; expected two dimensions")
    if block_table.size == 0:
        return np.zeros(0, block_table.dtype)
    row_bytes, entry_bytes = block_table.strides
    requests, max_pages = block_table.shape
    if max_pages > 1 and entry_bytes != block_table.itemsize:
        raise ValueError(
            f"block_table has a stride of {entry_bytes} bytes between the entries of a row; "
            f"expected {block_table.itemsize}: use numpy.ascontiguousarray"
        )
    if requests > 1 and row_bytes < 0:
        raise ValueError("block_table has its rows in reverse: use numpy.ascontiguousarray")
    length = (requests - 1) * (row_bytes // block_table.itemsize) + max_pages
    return np.lib.stride_tricks.as_strided(
        block_table, (length,), (block_table.itemsize,), writeable=False
    )
