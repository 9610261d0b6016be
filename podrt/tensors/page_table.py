"""Page tables as callers pass them: a block table, or one list with offsets; on host or GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.spec.batch import HybridBatch, kept_pages
from podrt.spec.mask import Mask
from podrt.spec.prefixes import equal_first_pages
from podrt.tensors.checks import require_dtype, require_rank, require_unit_stride
from podrt.tensors.host import host_array, to_numpy
from podrt.tensors.likeness import Address, address_if_like
from podrt.tensors.view import TensorView, view

Int32Array = npt.NDArray[np.int32]


_ALL_KEYS = Mask()


@dataclass(frozen=True, eq=False)
class PageTable:
    """Page numbers of a batch.

    Attributes
    ----------
    tensor : TensorView
        int32: a block table ``[requests, max_pages]`` or kv_indices ``[entries]``.
    kv_indptr : int32 array [requests + 1] or None
        Offsets into kv_indices; None for a block table.
    host_values : int32 array or None
        The flat page numbers when they lie in host memory.
    """

    tensor: TensorView
    kv_indptr: Int32Array | None
    host_values: Int32Array | None

    def __post_init__(self) -> None:
        _ = self._address  # looked at now: a tensor may be resized in place later

    @property
    def row_stride(self) -> int:
        """Entries from one row of a block table to the next, in what the kernel reads."""
        if self.host_values is not None or self.tensor.shape[0] < 2:
            return self.tensor.shape[1]
        return self.tensor.strides[0]

    def least_room(self, page_size: int, kv_lens: Int32Array) -> int:
        """Return how many keys more every request's entries have room for, at the least."""
        if not len(kv_lens):
            return 0
        if self.kv_indptr is None:
            return self.tensor.shape[1] * page_size - int(kv_lens.max())
        pages = kept_pages(self.kv_indptr.tobytes(), len(kv_lens), page_size)
        return int((pages.room - kv_lens).min())

    def has_only_pages_below(self, num_pages: int) -> bool:
        """Whether all page numbers, which lie in host memory, are of a cache of so many pages."""
        values = self.flat()
        return bool(values.size and values.min() >= 0 and values.max() < num_pages)

    def is_at(self, values: Any) -> bool:
        """Whether this is what reading `values` would give: the same memory, laid out the same."""
        return self._address is not None and self._address(values) == self.tensor.pointer != 0

    @cached_property
    def _address(self) -> Address | None:
        on_gpu = self.tensor.device is not None and self.kv_indptr is None
        return address_if_like(self.tensor.owner) if on_gpu else None

    @cached_property
    def equal_first_pages(self) -> npt.NDArray[np.int64]:
        """How many page numbers each request and the next one begin with alike, on the host."""
        pages = self.flat()
        if self.kv_indptr is not None:
            return equal_first_pages(pages, self.kv_indptr[:-1], self.kv_indptr[1:])
        requests, max_pages = self.tensor.shape[0], self.row_stride
        begin = np.arange(requests, dtype=np.int32) * np.int32(max_pages)
        return equal_first_pages(pages, begin, begin + np.int32(max_pages))

    def flat(self) -> Int32Array:
        """Return the page numbers on the host, laid out as the kernel sees them."""
        if self.host_values is None:
            raise ValueError(
                f"{self.tensor.name}: lies on {self.tensor.place}, expected host memory"
            )
        return self.host_values


def read_page_table(
    page_size: int | None,
    block_table: Any,
    kv_indptr: Any,
    kv_indices: Any,
    *,
    max_pages: int | None = None,
    last: PageTable | None = None,
) -> PageTable | None:
    """Check which of the page-table arguments were given, and view them.

    Returns None for a contiguous cache (`page_size` None), which takes none of them. Of a block
    table in host memory no more than `max_pages` columns are kept. The `last` one is returned if
    the arguments are a block table like it, at the same place on a GPU.
    """
    if last is not None and kv_indptr is None and kv_indices is None and last.is_at(block_table):
        return last
    given = [
        name
        for name, value in (
            ("block_table", block_table),
            ("kv_indptr", kv_indptr),
            ("kv_indices", kv_indices),
        )
        if value is not None
    ]
    if page_size is None:
        if given:
            raise ValueError(
                f"{given[0]}: given for a contiguous cache; set page_size to use pages"
            )
        return None
    if given == ["block_table"]:
        return _page_table(block_table, "block_table", 2, "[requests, max_pages]", None, max_pages)
    if given == ["kv_indptr", "kv_indices"]:
        indptr = host_array(kv_indptr, "kv_indptr")
        return _page_table(kv_indices, "kv_indices", 1, "[entries]", indptr)
    raise ValueError(
        f"page_size={page_size}: pass block_table, or kv_indptr with kv_indices; "
        f"got {', '.join(given) or 'none of them'}"
    )


def page_table_of(kv_indptr: Int32Array, kv_indices: Int32Array) -> PageTable:
    """Return the page table of lists in host memory that are right and will not change.

    They are not copied, as those are that `read_page_table` is given.
    """
    tensor = TensorView(
        name="kv_indices",
        pointer=kv_indices.ctypes.data,
        shape=kv_indices.shape,
        strides=(1,),
        dtype="int32",
        device=None,
        writable=True,
        framework="numpy",
        owner=kv_indices,
    )
    return PageTable(tensor, kv_indptr, kv_indices)


def make_batch(
    qo_indptr: Int32Array, kv_lens: Int32Array, table: PageTable | None, page_size: int | None
) -> HybridBatch:
    """Check lengths against the page table and gather them."""
    if table is None or page_size is None:
        return HybridBatch.contiguous(qo_indptr, kv_lens)
    if table.kv_indptr is not None:
        return HybridBatch.from_kv_indptr(
            qo_indptr,
            kv_lens,
            kv_indptr=table.kv_indptr,
            num_kv_indices=table.tensor.shape[0],
            page_size=page_size,
        )
    return HybridBatch.from_block_table(
        qo_indptr,
        kv_lens,
        shape=table.tensor.shape,
        row_stride=table.row_stride,
        page_size=page_size,
    )


def require_on_device(table: PageTable | None, device: int) -> None:
    """Raise ValueError if the page numbers lie on another GPU than the one that will read them."""
    if table is not None and table.tensor.device not in (None, device):
        raise ValueError(
            f"{table.tensor.name}: lies on {table.tensor.place}, expected cuda:{device}, the "
            "device of this object, or host memory"
        )


def require_pages_exist(
    table: PageTable, batch: HybridBatch, num_pages: int, mask: Mask = _ALL_KEYS
) -> None:
    """Check the page numbers that the batch reads, where they lie in host memory.

    Entries beyond a request's keys, of pages before all windows, and those of requests without
    queries may hold anything.

    Raises
    ------
    ValueError
        A page is not one of the cache's `num_pages`.
    """
    values = table.host_values
    if values is None or batch.page_size is None:
        return
    if table.has_only_pages_below(num_pages):
        return  # as nearly always, and nothing need be known of which of them are read
    q_lens, kv_lens = batch.q_lens.astype(np.int64), batch.kv_lens.astype(np.int64)
    first_entry = (kv_lens - mask.seen_keys(q_lens, kv_lens)) // batch.page_size
    end_entry = np.where(batch.q_lens > 0, -(-batch.kv_lens // batch.page_size), 0)
    num_entries = np.maximum(end_entry - first_entry, 0)
    request = np.repeat(np.arange(batch.num_requests), num_entries)
    before = np.cumsum(num_entries) - num_entries - first_entry
    entry = np.arange(len(request)) - np.repeat(before, num_entries)
    pages = values[batch.page_begin[request] + entry]
    wrong = np.flatnonzero((pages < 0) | (pages >= num_pages))
    if wrong.size:
        at = wrong[0]
        of_request, number = batch.as_given(int(request[at]), int(entry[at]))
        raise ValueError(
            f"{table.tensor.name}: page {number} of request {of_request} is {pages[at]}, "
            f"expected at least 0 and less than {num_pages}, the pages of k_cache"
        )


def _page_table(
    values: Any,
    name: str,
    rank: int,
    layout: str,
    kv_indptr: Int32Array | None,
    max_pages: int | None = None,
) -> PageTable:
    if isinstance(values, (list, tuple)):
        values = host_array(values, name)
    tensor = view(values, name)
    require_rank(tensor, rank, layout)
    require_dtype(tensor, "int32")
    require_unit_stride(tensor)
    host_values = None
    if tensor.device is None:
        if max_pages is not None and tensor.shape[1] > max_pages:
            tensor = replace(tensor, shape=(tensor.shape[0], max_pages))
        host_values = np.array(to_numpy(tensor), np.int32, order="C").reshape(-1)
    return PageTable(tensor, kv_indptr, host_values)
