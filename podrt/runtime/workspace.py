"""Device memory of a plan's launches on one stream: work items, partial results, counters.

Launches of one stream run in order and may share these; launches of different streams may not, so
every stream has a workspace of its own. A stream that is being captured into a CUDA graph gets one
that stays untouched afterwards, because the graph may be replayed at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from podrt.gpu.device import load_cupy
from podrt.kernels.arguments import plan_header
from podrt.kernels.portable.host import NUM_COUNTERS
from podrt.plan import Plan
from podrt.tensors.page_table import PageTable
from podrt.tensors.streams import cupy_stream, is_capturing


class Workspace:
    """Buffers that grow as needed and are written in stream order.

    Attributes
    ----------
    plan, partial_o, partial_lse, counters, merge_counters : CuPy arrays
        As in `podrt.kernels.portable.host.PARAMS`.
    page_table : CuPy array
        Copy of a page table that the caller keeps in host memory.
    """

    def __init__(self, device: int, stream: int) -> None:
        self._cupy = load_cupy()
        self._device, self._stream = device, stream
        self._plan: Plan | None = None
        self.plan = self.page_table = self.partial_o = self.partial_lse = self._empty(0, "uint8")
        self.counters = self._zeros(NUM_COUNTERS)
        self.merge_counters = self._zeros(0)

    def load(self, plan: Plan, head_dim: int, page_table: PageTable | None) -> None:
        """Make the buffers ready for `plan`; does nothing when they already are."""
        if self._plan is plan:
            return
        rows = plan.partial_rows * plan.num_kv_heads
        pages = 0
        if page_table is not None and page_table.host_values is not None:
            self.page_table = self._upload(self.page_table, page_table.host_values)
            pages = self.page_table.data.ptr
        elif page_table is not None:
            pages = page_table.tensor.pointer
        parts = plan_header(plan, pages, 0), plan.prefill.tobytes(), plan.decode.tobytes()
        self.plan = self._upload(self.plan, np.frombuffer(b"".join(parts), np.uint8))
        self.partial_o = self._grown(self.partial_o, rows * head_dim, "float32")
        self.partial_lse = self._grown(self.partial_lse, rows, "float32")
        merges = 2 * plan.num_merges * plan.num_kv_heads
        if self.merge_counters.size < merges:
            self.merge_counters = self._zeros(_with_slack(merges))
        self._plan = plan

    def _upload(self, buffer: Any, values: np.ndarray[Any, Any]) -> Any:
        buffer = self._grown(buffer, values.nbytes, "uint8")
        if values.nbytes:
            # The source is pageable, so CUDA has read it by the time that this returns.
            source = np.ascontiguousarray(values)
            self._cupy.cuda.runtime.memcpyAsync(
                buffer.data.ptr,
                source.ctypes.data,
                source.nbytes,
                self._cupy.cuda.runtime.memcpyHostToDevice,
                self._stream,
            )
        return buffer

    def _grown(self, buffer: Any, size: int, dtype: str) -> Any:
        return buffer if buffer.size >= size else self._empty(_with_slack(size), dtype)

    def _empty(self, size: int, dtype: str) -> Any:
        with self._current():
            return self._cupy.empty(size, dtype)

    def _zeros(self, size: int) -> Any:
        with self._current():
            zeros = self._cupy.empty(size, "uint32")
            zeros.data.memset_async(0, zeros.nbytes)
            return zeros

    @contextmanager
    def _current(self) -> Iterator[None]:
        # CuPy's pool then reuses freed memory only in the order of this stream.
        with self._cupy.cuda.Device(self._device), cupy_stream(self._stream):
            yield


def _with_slack(size: int) -> int:
    """Half as much again, so that slowly growing batches do not reallocate every time."""
    return size + size // 2


class Workspaces:
    """The workspaces of one `HybridAttention`, by stream."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._by_stream: dict[int, Workspace] = {}
        self._captured: list[tuple[int, Plan, Workspace]] = []

    def ready(
        self, stream: int, plan: Plan, head_dim: int, page_table: PageTable | None
    ) -> Workspace:
        """Return a workspace that holds `plan` and that only `stream` uses."""
        if is_capturing(stream):
            return self._ready_for_capture(stream, plan, head_dim, page_table)
        if stream not in self._by_stream:
            self._by_stream[stream] = Workspace(self._device, stream)
        workspace = self._by_stream[stream]
        workspace.load(plan, head_dim, page_table)
        return workspace

    def _ready_for_capture(
        self, stream: int, plan: Plan, head_dim: int, page_table: PageTable | None
    ) -> Workspace:
        """Prepare outside of the graph, on a stream of our own, what the graph will read."""
        for known_stream, known_plan, workspace in self._captured:
            if known_stream == stream and known_plan is plan:
                return workspace
        cuda = load_cupy().cuda
        with cuda.Device(self._device), _uncaptured():
            private = cuda.Stream(non_blocking=True)
            workspace = Workspace(self._device, private.ptr)
            workspace.load(plan, head_dim, page_table)
            private.synchronize()
        self._captured.append((stream, plan, workspace))
        return workspace


@contextmanager
def _uncaptured() -> Iterator[None]:
    """Allow this thread calls that CUDA otherwise forbids while any stream is being captured."""
    from cuda.bindings import runtime

    relaxed = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
    error, previous = runtime.cudaThreadExchangeStreamCaptureMode(relaxed)
    if error != runtime.cudaError_t.cudaSuccess:
        raise RuntimeError(f"cudaThreadExchangeStreamCaptureMode: {error}")
    try:
        yield
    finally:
        runtime.cudaThreadExchangeStreamCaptureMode(previous)
