"""Decodes of a plan on the GPU that become longer there, in place of another plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from podrt.errors import MissingKernelError
from podrt.jit import LoadedKernel
from podrt.kernels.growth import MOST_PAGES, THREADS, GrowthArguments, GrowthConfig, ctas_of
from podrt.runtime.driver import Driver, launch_shape
from podrt.runtime.kernels import load_grower
from podrt.runtime.planned import Planned
from podrt.runtime.workspace import Workspace
from podrt.spec.batch import HybridBatch
from podrt.tensors.page_table import PageTable


@dataclass(slots=True)
class Growth:
    """What a plan has grown by since it was copied to a workspace, and may grow by.

    Attributes
    ----------
    workspace : Workspace
        Where it was copied to.
    planned : Planned
        As it was copied.
    most_keys : int
        That every request may have more before it has to be planned anew.
    most_pages : int
        What new page numbers are less than; 0 where none may be given.
    num_keys : int
        That every request has more by now.
    pages : {entry of the page table: page}
        Page numbers that are other ones by now.
    """

    workspace: Workspace
    planned: Planned
    most_keys: int
    most_pages: int
    num_keys: int = 0
    pages: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, workspace: Workspace, planned: Planned, most_keys: int) -> Growth:
        """Return that of a plan which lies in a workspace; `most_keys` is the planner's limit.

        Page numbers in host memory have been checked against the caches of runs, as far as
        requests need them. What they grow into was not, unless all were fine.
        """
        table, batch = planned.page_table, planned.batch
        if most_keys < 1 or table is None or batch.page_size is None:
            return cls(workspace, planned, 0, 0)
        most_keys = min(most_keys, table.least_room(batch.page_size, batch.kv_lens))
        values = table.host_values
        if values is None:
            return cls(workspace, planned, most_keys, 0)
        num_pages = min(planned.checked_num_pages, default=_ANY_PAGE)
        if not table.has_only_pages_below(num_pages):
            most_keys = 0
        return cls(workspace, planned, most_keys, num_pages)

    @property
    def has_unchecked_pages(self) -> bool:
        """Whether there are page numbers in host memory that no run has checked."""
        table = self.planned.page_table
        in_host_memory = table is not None and table.host_values is not None
        return in_host_memory and not self.planned.checked_num_pages

    @property
    def is_in_place(self) -> bool:
        """Whether the workspace still has the plan."""
        return self.workspace.planned is self.planned

    def allows(self, num_keys: int, pages: Mapping[int, int]) -> bool:
        """Whether requests may have so many keys more, in pages of which these are new."""
        if self.num_keys + num_keys > self.most_keys or len(pages) > MOST_PAGES:
            return False
        if not self.is_in_place:
            return False
        if not pages:
            return True
        table = self.planned.page_table
        if table is None or table.host_values is None:
            return False
        last_entry = len(table.host_values) - 1
        return (
            min(pages) >= 0
            and max(pages) <= last_entry
            and min(pages.values()) >= 0
            and max(pages.values()) < self.most_pages
        )

    def grow(self, num_keys: int, pages: Mapping[int, int]) -> None:
        """Note what the plan has more."""
        self.num_keys += num_keys
        self.pages |= pages

    def grown(self) -> tuple[HybridBatch, PageTable | None]:
        """Return the batch as it is by now, and its page table."""
        batch, table = self.planned.batch, self.planned.page_table
        if self.pages and table is not None and table.host_values is not None:
            values = table.host_values.copy()
            values[list(self.pages)] = list(self.pages.values())
            table = replace(table, host_values=values)
        return batch.with_keys((batch.kv_lens + np.int32(self.num_keys)).tolist()), table


#: Page numbers are less than that whatever the cache.
_ANY_PAGE = 2**31


class Grower:
    """Launches on one GPU. Not for two threads at once: the arguments are changed in place."""

    def __init__(self, driver: Driver, arch: str) -> None:
        self._driver = driver
        self._kernel: LoadedKernel = load_grower(GrowthConfig(arch), driver.ordinal)
        self._arguments = GrowthArguments()

    def launch(self, growth: Growth, num_keys: int, pages: Mapping[int, int], stream: int) -> None:
        """Make a plan's decodes longer in the order of a stream, which is not being captured."""
        num_items = len(growth.planned.plan.decode)
        plan = growth.workspace.plan_address
        arguments = self._arguments.describe(plan, num_items, num_keys, pages)
        grid = ctas_of(num_items, len(pages))
        shape = launch_shape(self._kernel.function, grid, THREADS, 0)
        self._driver.launch(*shape, stream, arguments, 0)


def grower_for(driver: Driver, arch: str) -> Grower | None:
    """Return one for a GPU; None where its kernel is in no cache and must not be compiled.

    Plans then do not grow, which costs time alone.
    """
    try:
        return Grower(driver, arch)
    except MissingKernelError:
        return None
