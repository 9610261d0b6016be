"""Page tables of an engine's batches, kept from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import gt

import numpy as np
import numpy.typing as npt

from podrt.tensors.page_table import PageTable, page_table_of

IntArray = npt.NDArray[np.int32]

#: The entries of a request are a multiple of so many.
_STEP = 32


class PageTables:
    """Turns block tables, lists that grow a block now and then, into page tables.

    Requests have entries to spare, so that most new blocks move none of another request's: they are
    put into a copy of the last table, and where requests begin stays as it is.

    Parameters
    ----------
    page_size : int
        Tokens of a block.
    pages_per_block : int
        How far the pages of two blocks lie apart, in pages: block ``b`` is page ``b`` times this.
    most_blocks : int
        Entries of a request beyond which it has none to spare.

    Attributes
    ----------
    room : list of int
        Keys that the blocks of every request of the last batch hold.
    changed : {entry: page} or None
        What the last table has otherwise than the one before, of the same requests; None of others.
    """

    def __init__(self, page_size: int, pages_per_block: int, most_blocks: int) -> None:
        self._page_size, self._most_blocks = page_size, most_blocks
        self._pages_per_block = np.int32(pages_per_block)
        self.room: list[int] = []
        self.changed: dict[int, int] | None = None
        self._requests: Sequence[str] = ()  # of the last batch
        self._blocks: list[list[int]] = []
        self._begin = [0]  # entries of each, and where the last ones end
        self._kv_indptr, self._pages = np.zeros(1, np.int32), np.zeros(0, np.int32)
        self._table = page_table_of(self._kv_indptr, self._pages)

    def of(self, requests: Sequence[str], blocks: Mapping[str, list[int]]) -> PageTable:
        """Return the page table of a batch: the last one, the same object, if nothing has changed.

        Parameters
        ----------
        requests : sequence of str
            Names, in the order of the batch, of which there is one at least.
        blocks : {name: list of int}
            Blocks of each, as many as its keys fill, or more. A list may change between calls.
        """
        lists = [blocks[name] for name in requests]
        if requests != self._requests or not self._change(lists):
            self._make(requests, lists)
            self.changed, self._requests = None, requests
        return self._table

    def require_room(self, kv_lens: Sequence[int]) -> None:
        """Raise ValueError if a request has more keys than its blocks; entries to spare are none.

        Of the last batch.
        """
        if any(map(gt, kv_lens, self.room)):
            raise ValueError(f"kv_lens {kv_lens}: blocks hold {self.room}")

    def _change(self, lists: Sequence[list[int]]) -> bool:
        """Put what has changed into a copy of the same requests' table; say whether it fits."""
        last, begin = self._blocks, self._begin
        self.changed = {}
        if lists == last:
            return True
        changed = [at for at, blocks in enumerate(lists) if blocks != last[at]]
        if any(len(lists[at]) > begin[at + 1] - begin[at] for at in changed):
            return False
        pages = self._pages.copy()
        for at in changed:
            blocks, before = lists[at], last[at]
            kept = min(len(before), len(blocks))
            if blocks[:kept] != before[:kept]:
                kept = 0
            first, end = begin[at] + kept, begin[at] + len(blocks)
            pages[first:end] = new = self._pages_of(blocks[kept:])
            self.changed |= zip(range(first, end), new.tolist(), strict=True)
            last[at], self.room[at] = blocks.copy(), len(blocks) * self._page_size
        self._pages, self._table = pages, page_table_of(self._kv_indptr, pages)
        return True

    def _make(self, requests: Sequence[str], lists: Sequence[list[int]]) -> None:
        """Make the table of a batch of other requests, most of which the last one had too."""
        last = {name: at for at, name in enumerate(self._requests)}
        rows = []
        for name, blocks in zip(requests, lists, strict=True):
            at = last.get(name)
            if at is not None and self._blocks[at] == blocks:
                rows.append(self._pages[self._begin[at] : self._begin[at + 1]])
            else:
                rows.append(self._row(blocks))
        self._kv_indptr = np.array([0, *map(len, rows)], np.int32).cumsum(dtype=np.int32)
        self._begin, self._pages = self._kv_indptr.tolist(), np.concatenate(rows)
        self._blocks = [each.copy() for each in lists]
        self.room = [len(each) * self._page_size for each in lists]
        self._table = page_table_of(self._kv_indptr, self._pages)

    def _row(self, blocks: list[int]) -> IntArray:
        """Return the entries of a request; those to spare are page 0, and not read."""
        count = len(blocks)
        with_spare = min(-(-count // _STEP) * _STEP, self._most_blocks)
        entries = np.zeros(max(count, with_spare), np.int32)
        entries[:count] = self._pages_of(blocks)
        return entries

    def _pages_of(self, blocks: list[int]) -> IntArray:
        return np.array(blocks, np.int32) * self._pages_per_block
