"""The CUDA calls that the runtime makes, in one place, so that tests can stand in for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.gpu.device import load_cupy
from podrt.tensors.streams import LEGACY_STREAMS, cupy_stream

_HOST_TO_DEVICE = 1
_NOTHING_TO_DO = nullcontext()


class Pinned(NamedTuple):
    """Page-locked host memory, as NumPy and as CUDA see it; `owner` keeps it alive."""

    bytes: npt.NDArray[np.uint8]
    address: int
    owner: Any


class Memory(NamedTuple):
    """Device memory: its address and size; `owner` keeps it alive."""

    pointer: int
    nbytes: int
    owner: Any


class Event(NamedTuple):
    """A CUDA event, as the driver takes it; `owner` keeps it."""

    handle: Any
    owner: Any


class Driver:
    """One GPU.

    Parameters
    ----------
    ordinal : int
        CUDA device number.

    Attributes
    ----------
    context : int
        The GPU's primary context.
    current_context, stream_is_capturing, launch : functions
        CUDA's own, for what is called in every layer: what is between is in none of the CPU's
        caches then, and every call in Python takes a microsecond or two. The first two are asked by
        `is_current` and `is_capturing`. ``launch(*launch_shape(...), stream, arguments, 0)``
        enqueues a kernel; `arguments` is the address of an array of addresses of arguments.
    """

    def __init__(self, ordinal: int) -> None:
        from cuda.bindings import driver

        self.ordinal = ordinal
        self._bindings: Any = driver
        self._cuda: Any = load_cupy().cuda
        self._driver: Any = self._cuda.driver
        self._runtime: Any = self._cuda.runtime
        self.current_context: Callable[[], int] = self._driver.ctxGetCurrent
        self.stream_is_capturing: Callable[[int], bool] = self._runtime.streamIsCapturing
        self.launch: Callable[..., None] = self._driver.launchKernel
        with uncaptured(), self._cuda.Device(ordinal):
            self._runtime.setDevice(ordinal)
            self._runtime.free(0)  # makes the primary context, should setDevice not have
            self.context: int = self.current_context()

    def is_current(self) -> bool:
        """Whether CUDA calls of this thread go to this GPU, without asking for it first."""
        return self.current_context() == self.context

    def current(self) -> AbstractContextManager[None]:
        """Have CUDA calls of this thread go to this GPU, and then to the one before.

        A thread that had none keeps GPU 0, which would be its first anyway, and no other.
        """
        return _NOTHING_TO_DO if self.is_current() else self._made_current()

    @contextmanager
    def _made_current(self) -> Iterator[None]:
        previous = self._driver.ctxGetCurrent()
        self._driver.ctxSetCurrent(self.context)
        try:
            yield
        finally:
            if previous or self.ordinal:
                self._driver.ctxSetCurrent(previous)

    def is_capturing(self, stream: int) -> bool:
        """Whether the stream is being captured; the legacy default stream never can be."""
        return stream not in LEGACY_STREAMS and bool(self.stream_is_capturing(stream))

    def capture_of(self, stream: int) -> int | None:
        """Return the number of the capture that the stream takes part in, or None."""
        if not self.is_capturing(stream):
            return None
        found = self._bindings.cuStreamGetCaptureInfo(self._bindings.CUstream(stream))
        if found[0] != 0:
            raise RuntimeError(f"cuStreamGetCaptureInfo: {found[0].name}")
        return int(found[2])

    def stream_key(self, stream: int) -> Hashable:
        """Name the stream behind a handle: handles are reused, and 2 is another one in each thread.

        The legacy default stream has two handles and one name.
        """
        if stream in LEGACY_STREAMS:
            return 0
        error, number = self._bindings.cuStreamGetId(self._bindings.CUstream(stream))
        if error != 0:
            raise ValueError(f"stream={stream:#x}: the driver does not know it ({error.name})")
        return int(number)

    def allocate(self, nbytes: int, stream: int) -> Memory:
        """Return uninitialised memory to be used in the order of a stream.

        CuPy's pool hands it out again, once it is dropped, in the order of that stream.
        """
        with uncaptured(), cupy_stream(stream):
            owner = self._cuda.alloc(nbytes)
        return Memory(int(owner.ptr), nbytes, owner)

    def allocate_pinned(self, nbytes: int) -> Pinned:
        """Return page-locked host memory."""
        with uncaptured():
            owner = self._cuda.alloc_pinned_memory(nbytes)
        return Pinned(np.frombuffer(owner, np.uint8, nbytes), int(owner.ptr), owner)

    def clear(self, pointer: int, nbytes: int, stream: int) -> None:
        """Set memory to zero in the order of a stream."""
        self._runtime.memsetAsync(pointer, 0, nbytes, stream)

    def upload(self, pointer: int, host_address: int, nbytes: int, stream: int) -> None:
        """Copy host memory to the GPU in the order of a stream; asynchronous if it is pinned."""
        self._runtime.memcpyAsync(pointer, host_address, nbytes, _HOST_TO_DEVICE, stream)

    def event(self) -> Event:
        """Return a new event, which has nothing to wait for."""
        owner = self._cuda.Event(block=False, disable_timing=True)
        return Event(self._bindings.CUevent(int(owner.ptr)), owner)

    def record(self, event: Event, stream: int) -> None:
        """Have the event happen when the stream's work so far is done."""
        self._runtime.eventRecord(event.owner.ptr, stream)

    def have_happened(self, events: Sequence[Event]) -> list[bool]:
        """Return for each event whether the work before it is done."""
        query = self._bindings.cuEventQuery
        # The runtime's own query leaves "not ready" behind as an error, for others to find.
        with uncaptured():
            return [query(event.handle)[0] == 0 for event in events]

    def wait(self, event: Event) -> None:
        """Return when the work before the event is done."""
        with uncaptured():
            event.owner.synchronize()

    def private_stream(self) -> Any:
        """Return a new stream with ``ptr`` and ``synchronize``."""
        return self._cuda.Stream(non_blocking=True)


#: A kernel, its grid, threads and shared memory, as `Driver.launch` takes them.
LaunchShape = tuple[int, int, int, int, int, int, int, int]


def launch_shape(function: int, grid: int, threads: int, smem_bytes: int) -> LaunchShape:
    """Return the first arguments of `Driver.launch`."""
    return function, grid, 1, 1, threads, 1, 1, smem_bytes


def give_back_unused(ordinal: int | None) -> None:
    """Give memory that nobody holds any more back to a GPU; to the current one if None.

    CuPy's pool keeps it for the stream that it was allocated on, which may be gone. May wait for
    the GPU.
    """
    cupy = load_cupy()
    with uncaptured(), nullcontext() if ordinal is None else cupy.cuda.Device(ordinal):
        cupy.get_default_memory_pool().free_all_blocks()


@contextmanager
def uncaptured() -> Iterator[None]:
    """Allow this thread calls that CUDA otherwise forbids while any stream is being captured."""
    exchange, relaxed = _capture_modes()
    error, previous = exchange(relaxed)
    if error != 0:
        raise RuntimeError(f"cudaThreadExchangeStreamCaptureMode: {error}")
    try:
        yield
    finally:
        exchange(previous)


@cache
def _capture_modes() -> tuple[Any, Any]:
    """Return what exchanges a thread's capture mode, and the mode that forbids nothing."""
    from cuda.bindings import runtime

    relaxed = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
    return runtime.cudaThreadExchangeStreamCaptureMode, relaxed
