"""Batches of the suite ``host``, and their tensors in the frameworks that are installed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.gpu.device import load_cupy
from podrt.tensors.view import numpy_dtype

Int32Array = npt.NDArray[np.int32]

PAGE_SIZE = 16
HEAD_DIM = 128
_DTYPE = "bfloat16"
#: Keys that a batch grows by from step to step at most, before it starts anew.
_GROWTH = 64
#: Chunks of a prompt that moves on, before the next prompt.
_CHUNKS = 8


@dataclass(frozen=True)
class HostBatch:
    """Lengths of a batch.

    Attributes
    ----------
    name : str
    q_lens, kv_lens : int32 arrays [requests]
    heads : (int, int)
        Query and KV heads of the layer.
    chunk : int
        Tokens by which the first request, a prompt, moves on at every step; 0: by one, as all.
    """

    name: str
    q_lens: Int32Array
    kv_lens: Int32Array
    heads: tuple[int, int] = (32, 8)
    chunk: int = 0

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.q_lens)

    @property
    def qo_indptr(self) -> Int32Array:
        """First row of each request in q, int32 ``[requests + 1]``."""
        return np.concatenate(([0], np.cumsum(self.q_lens))).astype(np.int32)

    @property
    def max_pages(self) -> int:
        """Pages of the longest request, when it has grown."""
        return -(-self._max_kv_len // PAGE_SIZE)

    @property
    def _max_kv_len(self) -> int:
        return int(self.kv_lens.max()) + max(_GROWTH, self.chunk * _CHUNKS)

    @property
    def limits(self) -> dict[str, int]:
        """What to reserve for it."""
        return {
            "max_requests": self.requests,
            "max_tokens": int(self.q_lens.sum()),
            "max_kv_len": self._max_kv_len,
        }

    def at_step(self, step: int) -> Int32Array:
        """Return its kv_lens some steps later: a batch that no earlier plan was made for."""
        kv_lens = self.kv_lens + np.int32(step % _GROWTH)
        if self.chunk:
            kv_lens[0] = self.kv_lens[0] + self.chunk * (step % _CHUNKS)
        return kv_lens

    def block_table(self) -> Int32Array:
        """Return page numbers ``[requests, max_pages]``; requests share the pages of one cache."""
        rng = np.random.default_rng(0)
        return rng.integers(0, self.num_pages, (self.requests, self.max_pages), np.int32)

    @property
    def num_pages(self) -> int:
        """Pages of the cache: as many as the requests need, up to a few GB of them."""
        return min(self.requests * self.max_pages, 1 << 15)

    @property
    def layer_arguments(self) -> dict[str, Any]:
        """Arguments of `podrt.HybridAttention`."""
        return {
            "num_qo_heads": self.heads[0],
            "num_kv_heads": self.heads[1],
            "head_dim": HEAD_DIM,
            "page_size": PAGE_SIZE,
            "dtype": _DTYPE,
        }


def decodes(
    requests: int, *, prefill: int = 0, kv_len: int = 1024, moves_on: bool = False
) -> HostBatch:
    """Return decodes of ragged lengths around `kv_len`, behind a prefill chunk if there is one.

    The chunk grows by a key a step, as the decodes do, or moves on to the prompt's next tokens.
    """
    name = f"{requests} decodes" if not prefill else f"1 prefill({prefill}) + {requests}"
    name += ", the next chunk at every step" * moves_on
    rng = np.random.default_rng(requests)
    kv_lens = rng.integers(kv_len // 2, 3 * kv_len // 2, requests).astype(np.int32)
    q_lens = np.ones(requests, np.int32)
    if prefill:
        kv_lens = np.concatenate(([2 * prefill], kv_lens)).astype(np.int32)
        q_lens = np.concatenate(([prefill], q_lens)).astype(np.int32)
    return HostBatch(name, q_lens, kv_lens, chunk=prefill if moves_on else 0)


def short_prompts(requests: int, tokens: int, heads: tuple[int, int]) -> HostBatch:
    """Return as many prompts of the same few tokens."""
    lengths = np.full(requests, tokens, np.int32)
    name = f"{requests} of {tokens} tokens, {heads[0]}/{heads[1]} heads"
    return HostBatch(name, lengths, lengths, heads)


@dataclass(frozen=True, eq=False)
class Tensors:
    """Tensors of a batch for several layers: each layer's lie at addresses of their own.

    Attributes
    ----------
    layers : list of (q, k_cache, v_cache, out)
    block_table : tensor [requests, max_pages] on the GPU
    """

    layers: list[tuple[Any, Any, Any, Any]]
    block_table: Any


@dataclass(frozen=True)
class Framework:
    """Whose tensors are passed.

    Attributes
    ----------
    name : str
    convert : callable
        Makes a tensor of it over the memory of a CuPy array.
    stream : callable
        Makes a context in which its current stream is a new one that waits for no other.
    """

    name: str
    convert: Callable[[Any], Any]
    stream: Callable[[], AbstractContextManager[Any]]


def frameworks() -> list[Framework]:
    """Return PyTorch, where it is installed with CUDA, and CuPy."""
    found = [Framework("cupy", lambda array: array, _cupy_stream)]
    if find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            found.insert(0, Framework("torch", _to_torch, _torch_stream))
    return found


def make_tensors(batch: HostBatch, framework: Framework, layers: int) -> Tensors:
    """Return random tensors; the layers' are windows that lie a row or a page apart."""
    cupy = load_cupy()
    tokens = int(batch.q_lens.sum())
    q, out = (_normal((tokens + layers, batch.heads[0], HEAD_DIM), seed) for seed in range(2))
    pages = batch.num_pages
    cache_shape = (pages + layers, PAGE_SIZE, batch.heads[1], HEAD_DIM)
    k_cache, v_cache = (_normal(cache_shape, seed) for seed in range(2, 4))
    windows = [
        tuple(
            framework.convert(array[layer : layer + rows])
            for array, rows in ((q, tokens), (k_cache, pages), (v_cache, pages), (out, tokens))
        )
        for layer in range(layers)
    ]
    table = framework.convert(cupy.asarray(batch.block_table()))
    cupy.cuda.Device().synchronize()
    return Tensors(windows, table)


def default_stream() -> AbstractContextManager[Any]:
    """Return a context in which CuPy's current stream is the default one, as PyTorch's is."""
    stream: AbstractContextManager[Any] = load_cupy().cuda.Stream.null
    return stream


def _cupy_stream() -> AbstractContextManager[Any]:
    stream: AbstractContextManager[Any] = load_cupy().cuda.Stream(non_blocking=True)
    return stream


def _torch_stream() -> AbstractContextManager[Any]:
    import torch

    context: AbstractContextManager[Any] = torch.cuda.stream(torch.cuda.Stream())
    return context


def _to_torch(array: Any) -> Any:
    """View a CuPy array as a torch tensor; bfloat16 goes through its bits."""
    import torch

    if array.dtype == numpy_dtype("bfloat16"):
        return torch.from_dlpack(array.view("int16")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def _normal(shape: tuple[int, ...], seed: int) -> Any:
    cupy = load_cupy()
    values = cupy.random.RandomState(seed).standard_normal(shape, dtype="float32")
    bits = ((values.view("uint32") + 0x8000) >> 16).astype("uint16")
    return bits.view(numpy_dtype(_DTYPE))
