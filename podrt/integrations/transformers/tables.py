"""Page tables of an engine's batches, kept from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from podrt.tensors.page_table import PageTable, read_page_table

IntArray = npt.NDArray[np.int32]


class PageTables:
    """Turns block tables, lists that grow a block now and then, into page tables.

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
        self._blocks: list[list[int]] = []  # of the last batch
        self._table: PageTable | None = None

    def of(self, requests: Sequence[str], blocks: Mapping[str, list[int]]) -> PageTable:
        """Return the page table of a batch: the last one, the same object, if nothing has changed.

        Parameters
        ----------
        requests : sequence of str
            Names, in the order of the batch.
        blocks : {name: list of int}
            Blocks of each, as many as its keys fill, or more. A list may change between calls.
        """
        lists = [blocks[name] for name in requests]
        if self._table is None or lists != self._blocks:
            rows = [self._row(name, blocks[name]) for name in requests]
            self._rows = dict(zip(requests, rows, strict=True))  # without those that are gone
            self._blocks = [row[0] for row in rows]
            pages = [row[1] for row in rows]
            kv_indptr = np.zeros(len(pages) + 1, np.int32)
            np.array([len(each) for each in pages], np.int32).cumsum(out=kv_indptr[1:])
            kv_indices = np.concatenate(pages)
            self._table = read_page_table(self._page_size, None, kv_indptr, kv_indices)
            assert self._table is not None
        return self._table

    def _row(self, name: str, blocks: list[int]) -> tuple[list[int], IntArray]:
        row = self._rows.get(name)
        if row is None or row[0] != blocks:
            row = blocks.copy(), np.array(blocks, np.int32) * np.int32(self._pages_per_block)
        return row
