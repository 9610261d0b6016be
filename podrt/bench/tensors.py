"""Tensors of a case, made on the GPU."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.bench.case import Case
from podrt.errors import DeviceError
from podrt.gpu.device import load_cupy
from podrt.spec.types import DType
from podrt.tensors.view import numpy_dtype
from podrt.workloads.accuracy import Expected, Window, expected_of
from podrt.workloads.pages import contiguous_rows, shuffled_pages
from podrt.workloads.trees import random_trees

_GIB = 1 << 30
#: Left free for outputs, workspaces and the buffer that empties the L2 cache.
_RESERVE_BYTES = 4 * _GIB
_CHUNK = 1 << 26
_NAN_BITS = 0x7FFF  # in both element types


@dataclass(frozen=True, eq=False)
class CaseTensors:
    """Random tensors for a case; request i is row i of the block table or of the cache.

    Attributes
    ----------
    case : Case
    q, out : CuPy arrays [tokens, num_qo_heads, head_dim]
        Of `out`, and of `v_cache`, the last axis is `Case.value_dim`.
    k_cache, v_cache : CuPy arrays [pages, page_size, num_kv_heads, head_dim], or [requests, room,
        num_kv_heads, head_dim] of a contiguous cache
    block_table : int32 array [requests, max_pages] on the host, pages in random order; None for a
        contiguous cache
    sinks : CuPy array [num_qo_heads] float32, or None
    tree_mask : uint64 array [tokens] on the host, or None
        Of a case with trees.
    """

    case: Case
    q: Any
    k_cache: Any
    v_cache: Any
    out: Any
    block_table: npt.NDArray[np.int32] | None
    sinks: Any = None
    tree_mask: npt.NDArray[np.uint64] | None = None

    def expected(self, windows: Sequence[Window] | None = None) -> Expected:
        """Return what float64 says of some rows; by default of `Case.checked_windows`."""
        case = self.case
        sinks = None if self.sinks is None else self.sinks.get()
        wanted = case.checked_windows() if windows is None else windows
        return expected_of(self, wanted, layer=case.spec(), sinks=sinks, tree_mask=self.tree_mask)

    def poison(self) -> None:
        """Fill the output with NaN."""
        self.out.view("uint16").fill(_NAN_BITS)

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """``(q_len, kv_len)`` of every request."""
        return self.case.lengths

    def read_q(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Return rows of q on the host."""
        return self.q[begin:end].get()  # type: ignore[no-any-return]

    def read_kv(self, request: int, num_keys: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return a request's first keys and values, ``[num_keys, num_kv_heads, head_dim]``."""
        return self._keys(self.k_cache, request, num_keys), self._keys(
            self.v_cache, request, num_keys
        )

    def _keys(self, cache: Any, request: int, num_keys: int) -> npt.NDArray[Any]:
        if self.block_table is None or self.case.page_size is None:
            rows: npt.NDArray[Any] = cache[request, :num_keys].get()
            return rows
        pages = self.block_table[request, : -(-num_keys // self.case.page_size)]
        return fetch(cache, pages).reshape(-1, *cache.shape[2:])[:num_keys]


def make_tensors(case: Case, seed: int = 0) -> CaseTensors:
    """Return normally distributed tensors.

    Raises
    ------
    DeviceError
        They do not fit in the free memory of the GPU.
    """
    cupy = load_cupy()
    block_table, num_pages = None, 0
    if case.page_size is not None:
        rng = np.random.default_rng(seed)
        block_table, num_pages = shuffled_pages(case.kv_lens, case.page_size, rng)
    cache, rows = (*_cache_rows(case, num_pages), case.num_kv_heads), sum(case.q_lens)
    q_shape, k_shape = (rows, case.num_qo_heads, case.head_dim), (*cache, case.head_dim)
    v_shape, out_shape = (*cache, case.value_dim), (*q_shape[:2], case.value_dim)
    shapes = q_shape, k_shape, v_shape, out_shape
    _require_memory(case, 2 * sum(int(np.prod(shape)) for shape in shapes))
    random = cupy.random.RandomState(seed)
    q, k_cache, v_cache = (_normal(shape, case.dtype, random) for shape in shapes[:3])
    out = cupy.empty(out_shape, q.dtype)
    sinks = random.standard_normal(case.num_qo_heads, dtype="float32") if case.sinks else None
    words = random_trees(case.q_lens, np.random.default_rng(seed)) if case.trees else None
    return CaseTensors(case, q, k_cache, v_cache, out, block_table, sinks, words)


def fetch(array: Any, indices: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return some rows of a CuPy array on the host; CuPy gathers no bfloat16 by itself."""
    bits = array.view("uint16")[load_cupy().asarray(indices)].get()
    return bits.view(numpy_dtype(array.dtype.name))  # type: ignore[no-any-return]


def free_memory() -> None:
    """Give unused memory of CuPy, and of PyTorch if it is loaded, back to the GPU."""
    gc.collect()  # frames of a failed case may still hold its tensors
    load_cupy().get_default_memory_pool().free_all_blocks()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()


def _cache_rows(case: Case, num_pages: int) -> tuple[int, int]:
    if case.page_size is not None:
        return num_pages, case.page_size
    return contiguous_rows(case.kv_lens)


def _require_memory(case: Case, needed_bytes: int) -> None:
    free_bytes = load_cupy().cuda.runtime.memGetInfo()[0]
    if needed_bytes + _RESERVE_BYTES > free_bytes:
        raise DeviceError(
            f"case {case.name!r} needs {needed_bytes / _GIB:.1f} GiB for its tensors and "
            f"{_RESERVE_BYTES / _GIB:.0f} GiB beside them; {free_bytes / _GIB:.1f} GiB are free"
        )


def _normal(shape: tuple[int, ...], dtype: DType, random: Any) -> Any:
    """Return random numbers, rounded to `dtype` a chunk at a time."""
    cupy = load_cupy()
    bits = cupy.empty(int(np.prod(shape)), "uint16")
    for begin in range(0, bits.size, _CHUNK):
        part = bits[begin : begin + _CHUNK]
        values = random.standard_normal(part.size, dtype="float32")
        if dtype == "float16":
            part[...] = values.astype("float16").view("uint16")
        else:  # the upper half of a float32, rounded half up
            part[...] = (values.view("uint32") + 0x8000) >> 16
    return bits.reshape(shape).view(numpy_dtype(dtype))
