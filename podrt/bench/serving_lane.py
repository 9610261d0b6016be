"""One stream of a server for the endurance run: a reserved object, its graphs and its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.attention import HybridAttention
from podrt.bench.tensors import fetch
from podrt.bench.timing import Enqueue, capture_graph
from podrt.gpu.device import load_cupy
from podrt.workloads.accuracy import expected_of, windows_at_ends
from podrt.workloads.chunked_prefill import HybridStep

HEADS = (8, 2)
HEAD_DIM = 128
PAGE_SIZE = 16
DTYPE = "bfloat16"
#: Padded numbers of tokens of the graphs.
SIZES = (64, 256, 512)
MAX_REQUESTS = 64
MAX_KV_LEN = 4096
#: Requests of a step that are compared with float64.
_CHECKED_REQUESTS = 4
_NAN_BITS = 0x7FFF


@dataclass(frozen=True, eq=False)
class _Tensors:
    """The tensors of a step: q on the host, the caches on the GPU."""

    step: HybridStep
    q: npt.NDArray[Any]
    caches: tuple[Any, Any]
    table: npt.NDArray[np.int32]

    @property
    def lengths(self) -> list[tuple[int, int]]:
        return self.step.lengths

    def read_q(self, begin: int, end: int) -> npt.NDArray[Any]:
        return self.q[begin:end]

    def read_kv(self, request: int, num_keys: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        pages = self.table[request, : -(-num_keys // PAGE_SIZE)]
        found = [fetch(cache, pages) for cache in self.caches]
        keys, values = (rows.reshape(-1, *rows.shape[2:])[:num_keys] for rows in found)
        return keys, values


class ServingLane:
    """A reserved object on a stream of its own; q, out and the graphs keep their addresses.

    Parameters
    ----------
    caches : (k_cache, v_cache)
        CuPy arrays [pages, PAGE_SIZE, 2, HEAD_DIM] that the lanes share; they are only read.
    rng : numpy.random.Generator
        Page numbers, queries, and how much longer than the truth a plan is.
    """

    def __init__(self, caches: tuple[Any, Any], rng: np.random.Generator) -> None:
        cupy = load_cupy()
        self._caches, self._rng = caches, rng
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.attention = HybridAttention(*HEADS, HEAD_DIM, page_size=PAGE_SIZE, dtype=DTYPE)
        self._table: npt.NDArray[np.int32] = np.zeros((0, 0), np.int32)
        self._kept: tuple[Any, ...] = ()
        with self.stream:
            self.attention.reserve(MAX_REQUESTS, SIZES[-1], MAX_KV_LEN, stream=self.stream)
            bits = rng.standard_normal((SIZES[-1], HEADS[0], HEAD_DIM), np.float32).view(np.uint32)
            self._q = cupy.asarray((bits >> 16).astype(np.uint16)).view(caches[0].dtype)
            self._out = cupy.empty_like(self._q)
            self.stream.synchronize()
            self._graphs = {size: self._captured(size) for size in SIZES}

    def plan(self, step: HybridStep) -> None:
        """Plan a step over random pages; one in four by upper bounds of its lengths."""
        cupy = load_cupy()
        kv_lens = planned = step.kv_lens
        exact = None
        with self.stream:
            if self._rng.random() < 0.25:
                more = self._rng.integers(0, 9, len(kv_lens), np.int32)
                planned = np.minimum(kv_lens + more, MAX_KV_LEN).astype(np.int32)
                exact = cupy.asarray(kv_lens)
            shape = (len(kv_lens), -(-int(planned.max()) // PAGE_SIZE))
            self._table = self._rng.integers(0, len(self._caches[0]), shape, np.int32)
            on_gpu = cupy.asarray(self._table) if self._rng.random() < 0.5 else self._table
            self.attention.plan(
                step.qo_indptr,
                planned,
                block_table=on_gpu,
                device_kv_lens=exact,
                stream=self.stream,
            )
        self._kept = (on_gpu, exact)

    def replay(self, size: int) -> Any:
        """Replay the graph of `size` rows; returns the output of all of them."""
        with self.stream:
            self._graphs[size]()
        return self._out[:size]

    def run(self, tokens: int, *, with_out: bool) -> Any:
        """Run the planned batch without a graph; returns its output."""
        q, out = self._q[:tokens], self._out[:tokens] if with_out else None
        with self.stream:
            return self.attention.run(q, *self._caches, out=out, stream=self.stream)

    def poison(self) -> None:
        """Fill the output with NaN."""
        with self.stream:
            self._out.view("uint16").fill(_NAN_BITS)

    def error_of(self, step: HybridStep, out: Any) -> float:
        """Return the largest error of some rows of `out`, relative to the row's largest value.

        NaN if a row of the batch was not written; infinite if one beyond it was.
        """
        with self.stream:
            host = fetch(out, np.arange(len(out)))
            q = fetch(self._q, np.arange(step.total_tokens))
        if (host[step.total_tokens :].view(np.uint16) != _NAN_BITS).any():
            return float("inf")
        chosen = self._rng.permutation(len(step.q_lens))[:_CHECKED_REQUESTS].tolist()
        windows = [
            window
            for request in chosen
            for window in windows_at_ends(request, int(step.q_lens[request]))
        ]
        with self.stream:
            expected = expected_of(_Tensors(step, q, self._caches, self._table), windows)
        return expected.error_of(host[expected.rows])

    def _captured(self, size: int) -> Enqueue:
        return capture_graph(
            lambda: self.attention.run(
                self._q[:size], *self._caches, out=self._out[:size], stream=self.stream
            )
        )
