"""The kernel that makes decodes of a plan on the GPU longer: config, source, arguments."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from podrt.jit import KernelSource
from podrt.kernels.argument_block import ArgumentBlock
from podrt.kernels.arguments import PLAN_STRUCTS
from podrt.kernels.structs import Field, render_struct, struct_dtype

#: Most page numbers that a launch changes: they are among its parameters.
MOST_PAGES = 128
THREADS = 256

#: Arguments in memory order.
PARAMS = (
    Field("PlanHeader*", "plan", "the work items lie behind it"),
    Field("i64", "num_items", "of decode; of prefill there are none"),
    Field("i64", "num_keys", "that each decode has more"),
    Field("i64", "num_pages", "that are new"),
    Field("int", "entries", "of the page table", MOST_PAGES),
    Field("int", "pages", "", MOST_PAGES),
)
PARAMS_DTYPE = struct_dtype(PARAMS)
_CHANGING = 4


class GrowthConfig(NamedTuple):
    """The kernel for a target, for example ``"sm_90a"``."""

    arch: str
    threads: int = THREADS

    @property
    def name(self) -> str:
        """Readable name, different for different variants."""
        return f"grow_plan_{self.arch}"


def source_of(config: GrowthConfig) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    return KernelSource.rendered(
        "plan/grow.cu.jinja",
        config,
        plan_structs=PLAN_STRUCTS,
        params_struct=render_struct("Params", PARAMS),
    )


def ctas_of(num_items: int, num_pages: int) -> int:
    """Return the grid of a launch."""
    return -(-max(num_items, num_pages) // THREADS)


class GrowthArguments:
    """The arguments of launches, one after another."""

    def __init__(self) -> None:
        none = bytes(4 * MOST_PAGES)
        self._block = ArgumentBlock(PARAMS, _CHANGING, entries=none, pages=none)

    def describe(self, plan: int, num_items: int, num_keys: int, pages: Mapping[int, int]) -> int:
        """Take what a launch does; return what the driver takes.

        Parameters
        ----------
        plan : int
            Address of the plan.
        num_items, num_keys : int
            Of decode, and what each has more.
        pages : {entry of the page table: page}
            What is new, `MOST_PAGES` at most.
        """
        block, num_pages = self._block, len(pages)
        block.change(plan, num_items, num_keys, num_pages)
        if num_pages:
            pack, fields = _packer(num_pages), PARAMS_DTYPE.fields
            for name, values in (("entries", pages), ("pages", pages.values())):
                pack(block.view, fields[name][1], *values)  # type: ignore[index]
        return block.address

    def __bytes__(self) -> bytes:
        return bytes(self._block)


@cache
def _packer(count: int) -> Any:
    return struct.Struct(f"<{count}i").pack_into
