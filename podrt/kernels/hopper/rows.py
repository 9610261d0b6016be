"""What row gathers are given of a cache, in the place of a tensor map: ``hopper/row_gather.cuh``.

Pages whose tokens are no multiple of 8 hold no groups of rows that a TMA load could place in a
swizzled tile. Rows are copied one by one instead, from wherever they lie.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from podrt.kernels.structs import Field, packer, struct_dtype
from podrt.kernels.tensor_map import TENSOR_MAP_BYTES
from podrt.spec.types import ELEMENT_BYTES, DType
from podrt.tensors.view import TensorView

#: Elements that one copy of a lane brings.
CHUNK = 8
#: As the kernels see it, in memory order. A row lies page * page_steps + token * token_steps steps
#: behind the first one.
CACHE_ROWS = (
    Field("const u16*", "base", "[pages, page_size, num_kv_heads, head_dim]"),
    Field("int", "num_pages", ""),
    Field("int", "page_steps", "from a page to the next, in steps"),
    Field("int", "token_steps", "from a token to the next"),
    Field("int", "step_bytes", "of a step: what strides are multiples of"),
)
CACHE_ROWS_DTYPE: np.dtype[np.void] = struct_dtype(CACHE_ROWS)
#: Steps are counted in 32 bits, of which the largest number means no row at all.
_MOST_STEPS = 2**32 - 2
#: Longest step in elements, so that bytes fit 32 bits.
_LONGEST_STEP = 2**20


class RowSteps(NamedTuple):
    """How the rows of a cache lie: the members of `CACHE_ROWS` behind the address."""

    num_pages: int
    page_steps: int
    token_steps: int
    step_bytes: int

    def by_offset(self) -> dict[int, int]:
        """Return the members by their offsets in bytes, the address being in front of them."""
        members: Any = CACHE_ROWS_DTYPE.fields
        return {members[name][1]: value for name, value in self._asdict().items()}


def row_steps(cache: TensorView, dtype: DType) -> RowSteps:
    """Return how the rows of a cache [pages, page_size, num_kv_heads, head_dim] lie."""
    page, token = _strides(cache)
    step = math.gcd(page, token) or CHUNK
    if step > _LONGEST_STEP:
        step = math.gcd(step, _LONGEST_STEP)
    return RowSteps(cache.shape[0], page // step, token // step, step * ELEMENT_BYTES[dtype])


def cache_rows(pointer: int, steps: RowSteps) -> bytes:
    """Return what a kernel is given of a cache at an address, as long as a tensor map."""
    return packer(CACHE_ROWS_DTYPE).pack(pointer, *steps).ljust(TENSOR_MAP_BYTES, b"\0")


def require_gatherable(cache: TensorView, dtype: DType) -> None:
    """Raise ValueError if rows of a cache that lies like that cannot be gathered."""
    obstacle = why_ungatherable(cache, dtype)
    if obstacle:
        raise ValueError(f'{obstacle}; pass another tensor, or use policy="portable"')


def head_chunks(cache: TensorView) -> int:
    """Return the blocks of `CHUNK` columns from a KV head to the next."""
    return 0 if cache.shape[2] == 1 else cache.strides[2] // CHUNK


def why_ungatherable(cache: TensorView, dtype: DType) -> str | None:
    """Say why rows of a cache that lies like that cannot be gathered; None if they can."""
    if 0 in cache.shape:
        return None
    got = f"{cache.name}: got strides {cache.strides} (in elements), expected "
    if any(stride < 0 for stride in (*_strides(cache), head_chunks(cache))):
        return got + "none below 0"
    steps = row_steps(cache, dtype)
    last = (cache.shape[0] - 1) * steps.page_steps + (cache.shape[1] - 1) * steps.token_steps
    if last > _MOST_STEPS:
        return got + (
            f"the last row at most {_MOST_STEPS} steps of {steps.step_bytes} bytes, which all "
            "strides are multiples of, from the first"
        )
    return None


def _strides(cache: TensorView) -> tuple[int, int]:
    """Return those from page to page and token to token; 0 where there is one alone."""
    page, token = (
        stride if extent > 1 else 0
        for extent, stride in zip(cache.shape[:2], cache.strides[:2], strict=True)
    )
    return page, token
