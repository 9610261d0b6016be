"""A planned batch: what `HybridAttention.plan` leaves for `HybridAttention.run`."""

from __future__ import annotations

from dataclasses import dataclass, field

from podrt.kernels.arguments import PLAN_HEADER_BYTES, plan_header
from podrt.kernels.families import Variant
from podrt.plan import WORK_ITEM, Plan
from podrt.spec.batch import HybridBatch
from podrt.tensors.page_table import Int32Array, PageTable, require_pages_exist
from podrt.tensors.view import TensorView

#: Kernels in order, with their grids.
Launches = tuple[tuple[Variant, int], ...]


def plan_bytes(items: int, table_entries: int) -> int:
    """Return the bytes of a plan on the GPU: header, items and copied page numbers."""
    return PLAN_HEADER_BYTES + items * WORK_ITEM.itemsize + table_entries * 4


@dataclass(frozen=True, eq=False)
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
    checked_num_pages : set of int
        Cache sizes against which page numbers in host memory have been checked.
    """

    batch: HybridBatch
    plan: Plan
    launches: Launches
    page_table: PageTable | None
    device_kv_lens: TensorView | None
    checked_num_pages: set[int] = field(default_factory=set)

    @property
    def host_page_table(self) -> Int32Array | None:
        """Page numbers that have to be copied to the GPU along with the plan."""
        return self.page_table.host_values if self.page_table is not None else None

    @property
    def page_table_offset(self) -> int:
        """Where they lie behind the plan's header and items, in bytes."""
        items = len(self.plan.prefill) + len(self.plan.decode)
        return PLAN_HEADER_BYTES + items * WORK_ITEM.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of header, items and page numbers together."""
        table = self.host_page_table
        return self.page_table_offset + (0 if table is None else table.nbytes)

    def header(self, address: int) -> bytes:
        """Return the header of the plan that is to lie at `address` on the GPU."""
        table, lengths = self.page_table, self.device_kv_lens
        page_table = 0
        if table is not None:
            copied = table.host_values is not None
            page_table = address + self.page_table_offset if copied else table.tensor.pointer
        return plan_header(self.plan, page_table, lengths.pointer if lengths else 0)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The kernels of an ordinary run, in order."""
        return tuple(variant for variant, _ in self.launches)

    def require_pages_exist(self, num_pages: int) -> None:
        """Check page numbers in host memory against a cache, once for each size; ValueError."""
        if self.page_table is not None and num_pages not in self.checked_num_pages:
            require_pages_exist(self.page_table, self.batch, num_pages)
            self.checked_num_pages.add(num_pages)
