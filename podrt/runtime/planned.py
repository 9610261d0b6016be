"""A planned batch: what `HybridAttention.plan` leaves for `HybridAttention.run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.kernels.arguments import PLAN_HEADER_BYTES, write_plan_header
from podrt.kernels.families import Variant
from podrt.plan import WORK_ITEM, Plan
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import Mask
from podrt.tensors.page_table import PageTable, require_pages_exist
from podrt.tensors.tree_mask import TreeMask
from podrt.tensors.view import TensorView

#: Kernels in order, with their grids.
Launches = tuple[tuple[Variant, int], ...]


def plan_bytes(items: int, table_entries: int, tree_words: int = 0) -> int:
    """Return the bytes of a plan on the GPU: header, items, copied tree mask and page numbers."""
    return PLAN_HEADER_BYTES + items * WORK_ITEM.itemsize + tree_words * 8 + table_entries * 4


@dataclass(eq=False, slots=True)
class Planned:
    """A batch, its plan and the tensors that kernels read besides those of a run.

    Attributes
    ----------
    batch : HybridBatch
        Lengths and page geometry.
    plan : Plan
        Work items.
    launches : Launches
        The kernels of an ordinary run, in order, and their grids.
    page_table : PageTable or None
        Page numbers; None for a contiguous cache.
    device_kv_lens : TensorView or None
        Exact lengths, int32 ``[requests]``, that only the GPU knows.
    tree_mask : TreeMask or None
        Which new keys tokens see; None for a causal mask.
    checked_num_pages : set of int
        Cache sizes against which page numbers in host memory have been checked.
    """

    batch: HybridBatch
    plan: Plan
    launches: Launches
    page_table: PageTable | None
    device_kv_lens: TensorView | None
    tree_mask: TreeMask | None = None
    checked_num_pages: set[int] = field(default_factory=set)

    @property
    def nbytes(self) -> int:
        """Bytes of header, items, joins, copied tree mask and page numbers together."""
        plan = self.plan
        nbytes = plan_bytes(len(plan.prefill) + len(plan.decode), 0)
        if plan.joins is not None:
            nbytes += sum(table.nbytes for table in plan.joins)
        for copied in (self.page_table, self.tree_mask):
            if copied is not None and copied.host_values is not None:
                nbytes += copied.host_values.nbytes
        return nbytes

    def write(self, to: npt.NDArray[np.uint8], address: int) -> None:
        """Write all that is copied; it is to lie at `address` on the GPU."""
        plan, table, lengths, tree = self.plan, self.page_table, self.device_kv_lens, self.tree_mask
        end = PLAN_HEADER_BYTES
        for items in (plan.prefill, plan.decode):
            if items.size:
                begin, end = end, end + items.nbytes
                to[begin:end] = np.frombuffer(items, np.uint8)
        page_table = tree_mask = joins = 0
        if plan.joins is not None:
            joins = address + end
            for rows in plan.joins:
                begin, end = end, end + rows.nbytes
                to[begin:end] = rows.reshape(-1).view(np.uint8)
        if tree is not None:
            tree_mask = tree.tensor.pointer
            if tree.host_values is not None:  # first, as words of 64 bits are aligned like items
                tree_mask, begin = address + end, end
                end += tree.host_values.nbytes
                to[begin:end] = tree.host_values.view(np.uint8)
        if table is not None:
            page_table = table.tensor.pointer
            if table.host_values is not None:
                page_table = address + end
                to[end : end + table.host_values.nbytes] = table.host_values.view(np.uint8)
        kv_lens = 0 if lengths is None else lengths.pointer
        write_plan_header(to, plan, page_table, kv_lens, tree_mask, joins)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The kernels of an ordinary run, in order."""
        return tuple([variant for variant, _ in self.launches])

    def require_pages_exist(self, num_pages: int) -> None:
        """Check page numbers in host memory against a cache, once for each size; ValueError."""
        if self.page_table is not None and num_pages not in self.checked_num_pages:
            # Requests that are shorter than planned have windows that nobody knows yet.
            mask = Mask() if self.device_kv_lens else self.plan.mask
            require_pages_exist(self.page_table, self.batch, num_pages, mask)
            self.checked_num_pages.add(num_pages)


class Prepared(NamedTuple):
    """A plan to adopt, and the stream to copy it on; without one the first run copies it."""

    planned: Planned
    stream: int | None
