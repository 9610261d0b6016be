"""FlashAttention-3's forward pass: one side after the other, on two streams, in one varlen call.

The package serves contiguous caches alone, so a paged case gets one of its own with the same
lengths: ``[requests, longest, num_kv_heads, head_dim]``.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from podrt.bench.case import Case
from podrt.bench.peers import Maker, torch_view
from podrt.bench.tensors import CaseTensors


def makers(tensors: CaseTensors) -> dict[str, Maker]:
    """Return FlashAttention-3's contenders for a case."""
    calls = _Calls(tensors)
    if not tensors.case.is_hybrid:
        if tensors.case.prefill:
            return {"prefill alone": lambda: calls.prefill}
        return {"decode alone": lambda: calls.decode}
    return {
        "serial": lambda: calls.serial,
        "streams": lambda: calls.streams,
        "varlen": lambda: calls.varlen,
        "prefill alone": lambda: calls.prefill,
        "decode alone": lambda: calls.decode,
    }


class _Calls:
    """The package's functions on a case's tensors."""

    def __init__(self, tensors: CaseTensors) -> None:
        import fa3_fwd_interface

        self._fa3 = fa3_fwd_interface
        case = self._case = tensors.case
        self._prefills = len(case.prefill)
        self._q = torch_view(tensors.q)
        self._q_prefill = self._q[: case.prefill_tokens]
        self._q_decode = self._q[case.prefill_tokens :, None]
        self._k, self._v = _caches(tensors)
        self._kv_lens = _int32(case.kv_lens)
        starts = [0]
        for q_len in case.q_lens:
            starts.append(starts[-1] + q_len)
        self._starts = _int32(starts)

    def prefill(self) -> Any:
        if self._prefills == 1:
            kv_len = self._case.prefill[0][1]
            k, v = self._k[:1, :kv_len], self._v[:1, :kv_len]
            return self._fa3.flash_attn_func(self._q_prefill[None], k, v, causal=True)
        return self._ragged(self._q_prefill, self._prefills)

    def decode(self) -> Any:
        return self._fa3.flash_attn_with_kvcache(
            self._q_decode,
            self._k[self._prefills :],
            self._v[self._prefills :],
            cache_seqlens=self._kv_lens[self._prefills :],
            causal=True,
        )

    def serial(self) -> None:
        self.prefill()
        self.decode()

    def varlen(self) -> Any:
        return self._ragged(self._q, len(self._case.kv_lens))

    def streams(self) -> None:
        import torch

        current = torch.cuda.current_stream()
        self._side_stream.wait_stream(current)
        with torch.cuda.stream(self._side_stream):
            self.decode()
        self.prefill()
        current.wait_stream(self._side_stream)

    @cached_property
    def _side_stream(self) -> Any:
        import torch

        return torch.cuda.Stream()

    def _ragged(self, q: Any, requests: int) -> Any:
        return self._fa3.flash_attn_with_kvcache(
            q,
            self._k[:requests],
            self._v[:requests],
            cache_seqlens=self._kv_lens[:requests],
            cu_seqlens_q=self._starts[: requests + 1],
            max_seqlen_q=max(self._case.q_lens[:requests]),
            causal=True,
        )


def _caches(tensors: CaseTensors) -> tuple[Any, Any]:
    """Return podrt's own caches if they are contiguous, else new ones."""
    import torch

    if tensors.block_table is None:
        return torch_view(tensors.k_cache), torch_view(tensors.v_cache)
    shape = _contiguous_shape(tensors.case)
    dtype = getattr(torch, tensors.case.dtype)
    k, v = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(2))
    return k, v


def _contiguous_shape(case: Case) -> tuple[int, int, int, int]:
    return len(case.kv_lens), max(case.kv_lens), case.num_kv_heads, case.head_dim


def _int32(values: Any) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.int32, device="cuda")
