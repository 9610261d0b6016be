"""FlashInfer's fused kernels, BatchPOD and BatchAttention, and its two sides alone.

It serves paged caches; a contiguous one is given to it as pages in order. The package compiles its
kernels when they are first used, which can take minutes: build them before a run.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from podrt.bench.peers import Maker, torch_view
from podrt.bench.tensors import CaseTensors
from podrt.errors import UnsupportedConfigError
from podrt.workloads.pages import ROOM_STEP

_WORKSPACE_BYTES = 256 << 20


def makers(tensors: CaseTensors) -> dict[str, Maker]:
    """Return FlashInfer's contenders for a case."""
    import flashinfer  # noqa: F401  (so that its absence is one error, not one per contender)

    problem = _Problem(tensors)
    sides: dict[str, Maker] = {}
    if tensors.case.prefill:
        sides["prefill alone"] = problem.prefill
        # Of the portable family's class; the default is FlashAttention-3's kernel on Hopper.
        sides["fa2 prefill alone"] = partial(problem.prefill, backend="fa2")
    if tensors.case.decode:
        sides["decode alone"] = problem.decode
    if not tensors.case.is_hybrid:
        return sides
    return {"batch_pod": problem.batch_pod, "batch_attention": problem.batch_attention, **sides}


class _Pages(NamedTuple):
    """Page table of some requests: int32 tensors on the GPU."""

    indptr: Any
    indices: Any
    last_page_len: Any


class _Problem:
    """A case in FlashInfer's terms; every method plans one contender."""

    def __init__(self, tensors: CaseTensors) -> None:
        case = self._case = tensors.case
        self._page_size = case.page_size or ROOM_STEP
        self._q = torch_view(tensors.q)
        self._caches = tuple(
            torch_view(cache).view(-1, self._page_size, case.num_kv_heads, case.head_dim)
            for cache in (tensors.k_cache, tensors.v_cache)
        )
        self._table = _block_table(tensors, self._page_size)
        self._prefills = slice(0, len(case.prefill))
        self._decodes = slice(len(case.prefill), len(case.kv_lens))
        dtype = self._q.dtype
        self._heads = (case.num_qo_heads, case.num_kv_heads, case.head_dim)
        self._types = {"q_data_type": dtype, "kv_data_type": dtype}

    def prefill(self, backend: str = "auto") -> Any:
        import flashinfer

        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            _workspace(), "NHD", backend=backend
        )
        wrapper.plan(
            self._qo_indptr(self._prefills),
            *self._pages(self._prefills),
            *self._heads,
            self._page_size,
            causal=True,
            **self._types,
        )
        q = self._q[: self._case.prefill_tokens]
        return lambda: wrapper.run(q, self._caches)

    def decode(self) -> Any:
        import flashinfer

        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            _workspace(), "NHD", use_tensor_cores=True
        )
        wrapper.plan(*self._pages(self._decodes), *self._heads, self._page_size, **self._types)
        q = self._q[self._case.prefill_tokens :]
        return lambda: wrapper.run(q, self._caches)

    def batch_pod(self) -> Any:
        import flashinfer

        wrapper = flashinfer.BatchPODWithPagedKVCacheWrapper(_workspace(), "NHD")
        wrapper.plan(
            self._qo_indptr(self._prefills),
            *self._pages(self._prefills),
            self._qo_indptr(self._decodes),
            *self._pages(self._decodes),
            *self._heads,
            self._page_size,
            **self._types,
        )
        tokens, caches = self._case.prefill_tokens, self._caches
        q_prefill, q_decode = self._q[:tokens], self._q[tokens:]
        return lambda: wrapper.run(q_prefill, caches, q_decode, caches, causal_p=True)

    def batch_attention(self) -> Any:
        import flashinfer

        everyone = slice(0, len(self._case.kv_lens))
        pages = self._pages(everyone)
        wrapper = flashinfer.BatchAttention("NHD")
        wrapper.plan(
            self._qo_indptr(everyone),
            pages.indptr,
            pages.indices,
            _int32(self._case.kv_lens),
            *self._heads,
            self._case.head_dim,
            self._page_size,
            causal=True,
            **self._types,
        )
        return lambda: wrapper.run(self._q, self._caches)

    def _qo_indptr(self, requests: slice) -> Any:
        return _int32([0, *accumulate(self._case.q_lens[requests])])

    def _pages(self, requests: slice) -> _Pages:
        kv_lens = self._case.kv_lens[requests]
        counts = [-(-kv_len // self._page_size) for kv_len in kv_lens]
        rows = zip(self._table[requests], counts, strict=True)
        return _Pages(
            _int32([0, *accumulate(counts)]),
            _int32([page for row, count in rows for page in row[:count]]),
            _int32([(kv_len - 1) % self._page_size + 1 for kv_len in kv_lens]),
        )


def _block_table(tensors: CaseTensors, page_size: int) -> list[list[int]]:
    """Return the page numbers of every request."""
    if tensors.block_table is not None:
        table: list[list[int]] = tensors.block_table.tolist()
        return table
    requests, room = tensors.k_cache.shape[:2]
    if room % page_size:
        raise UnsupportedConfigError(f"a cache of {room} tokens is no whole number of pages")
    per_row = room // page_size
    return [list(range(row * per_row, (row + 1) * per_row)) for row in range(requests)]


def _workspace() -> Any:
    import torch

    return torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")


def _int32(values: Any) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.int32, device="cuda")


def cascade(tensors: CaseTensors, shared_keys: int) -> Any:
    """Plan FlashInfer's cascade of two levels: keys that all requests share, and their own."""
    import flashinfer

    case, page_size = tensors.case, tensors.case.page_size
    assert page_size is not None and tensors.block_table is not None
    requests, shared_pages = len(case.kv_lens), shared_keys // page_size
    rows = [
        row[shared_pages : -(-kv_len // page_size)]
        for row, kv_len in zip(tensors.block_table.tolist(), case.kv_lens, strict=True)
    ]
    q = torch_view(tensors.q)
    caches = tuple(torch_view(cache) for cache in (tensors.k_cache, tensors.v_cache))
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, _workspace(), "NHD")
    wrapper.plan(
        [_int32([0, requests]), _int32(range(requests + 1))],
        [_int32([0, shared_pages]), _int32([0, *accumulate(map(len, rows))])],
        [
            _int32(tensors.block_table[0, :shared_pages]),
            _int32([page for row in rows for page in row]),
        ],
        [_int32([page_size]), _int32([(n - 1) % page_size + 1 for n in case.kv_lens])],
        case.num_qo_heads,
        case.num_kv_heads,
        case.head_dim,
        page_size,
        causal=True,
        q_data_type=q.dtype,
        kv_data_type=q.dtype,
    )
    return lambda: wrapper.run(q, caches)
