"""Page tables of an engine's batches, kept from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


class Tables(NamedTuple):
    """A batch's page numbers as `HybridAttention.plan` takes them."""

    kv_indptr: IntArray
    kv_indices: IntArray


class PageTables:
    """Turns block tables, lists that grow a block now and then, into arrays of page numbers.

    Parameters
    ----------
    page_size : int
        Tokens of a block.
    pages_per_block : int
        How far the pages of two blocks lie apart, in pages: block ``b`` is page ``b`` times this.
    """

    def __init__(self, page_size: int, pages_per_block: int) -> None:
        self._page_size, self._pages_per_block = page_size, pages_per_block
        self._rows: dict[str, tuple[list[int], IntArray]] = {}

    def of(
        self, requests: Sequence[str], kv_lens: Sequence[int], blocks: Mapping[str, list[int]]
    ) -> Tables:
        """Return the tables of a batch.

        Parameters
        ----------
        requests : sequence of str
            Names, in the order of the batch.
        kv_lens : sequence of int
            Keys of each.
        blocks : {name: list of int}
            Blocks of each, as many as its keys fill, or more. A list may change between calls.
        """
        before, rows, parts = self._rows, {}, []
        ends = -(-np.array(kv_lens, np.int32) // self._page_size)
        for name, end in zip(requests, ends.tolist(), strict=True):
            of_request = blocks[name]
            row = before.get(name)
            if row is None or row[0] != of_request:
                pages = np.array(of_request, np.int32) * np.int32(self._pages_per_block)
                row = of_request.copy(), pages
            rows[name] = row
            pages = row[1]
            parts.append(pages if len(pages) == end else pages[:end])
        self._rows = rows  # those of requests that are gone are forgotten
        kv_indptr = np.zeros(len(parts) + 1, np.int32)
        ends.cumsum(out=kv_indptr[1:])
        return Tables(kv_indptr, np.concatenate(parts))
