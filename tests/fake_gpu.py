"""A GPU of bytes: streams whose work is done when the test says so, graphs, and PyTorch's tensors.

Copies read their source when they are done, not when they are asked for, so a staging buffer that
is written too early shows. A launch keeps its arguments as they are at the call, and reads the plan
that they point at when it is done, as kernels do. Memory that nobody holds any more is overwritten
in the order of the stream that it was allocated on, as the next owner would. Threads other than the
main one have no current context, and most calls need one.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from podrt.gpu.arch import get_arch
from podrt.gpu.device import DeviceInfo
from podrt.kernels.arguments import PLAN_HEADER_BYTES, PLAN_HEADER_DTYPE
from podrt.kernels.cache_write import PARAMS_DTYPE as WRITE_PARAMS_DTYPE
from podrt.kernels.cache_write import CacheWriteConfig
from podrt.kernels.families import Variant, params_dtype
from podrt.kernels.growth import PARAMS_DTYPE as GROWTH_PARAMS_DTYPE
from podrt.kernels.growth import GrowthConfig
from podrt.kernels.joins import PARAMS as JOIN_PARAMS
from podrt.kernels.joins import JoinConfig
from podrt.kernels.structs import struct_dtype
from podrt.plan import WORK_ITEM
from podrt.runtime.driver import Memory, Pinned
from podrt.tensors.streams import LEGACY_STREAMS

H100 = DeviceInfo(0, "NVIDIA H100", get_arch("sm_90a"), 132, 80 << 30, 50 << 20, 3352.0)
A100 = DeviceInfo(0, "NVIDIA A100", get_arch("sm_80"), 108, 80 << 30, 40 << 20, 2039.0)

_ALIGN = 1024


@dataclass
class Launch:
    """One launch: what it was asked for, and the plan that it found when it was done."""

    variant: Variant
    grid: int
    stream: int
    arguments: np.void
    prefill: Any = None
    decode: Any = None
    header: Any = None


class FakeEvent:
    pending = 0


class Owner:
    """Stands for whatever keeps memory."""


class FakeGpu:
    """Stands for `podrt.runtime.driver.Driver`."""

    def __init__(self, ordinal: int = 0) -> None:
        self.ordinal = ordinal
        self.memory: dict[int, bytearray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.work: list[tuple[int, Callable[[], None]]] = []  # (stream, what), in order of asking
        self.launches: list[Launch] = []  # done
        self.capturing: dict[int, int] = {}  # stream -> capture
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.stream_keys: dict[int, Hashable] = {}
        self.functions: list[Variant] = []
        self.allocations = 0
        self.allocations_left = 1 << 30
        self._bytes_free = 0
        self._next = itertools.count(_ALIGN, 1 << 32)
        self._thread = threading.local()

    # What Driver offers.

    def is_current(self) -> bool:
        is_main = threading.current_thread() is threading.main_thread()
        return getattr(self._thread, "is_current", is_main)

    @contextmanager
    def current(self) -> Iterator[None]:
        before, self._thread.is_current = self.is_current(), True
        try:
            yield
        finally:
            self._thread.is_current = before

    def is_capturing(self, stream: int) -> bool:
        self._require_context()
        return stream in self.capturing

    def stream_is_capturing(self, stream: int) -> bool:
        assert stream not in LEGACY_STREAMS
        return self.is_capturing(stream)

    context = 1

    def current_context(self) -> int:
        return self.context if self.is_current() else 0

    def capture_of(self, stream: int) -> int | None:
        self._require_context()
        return self.capturing.get(stream)

    def stream_key(self, stream: int) -> Hashable:
        self._require_context()
        return self.stream_keys.get(stream, stream)

    def allocate(self, nbytes: int, stream: int) -> Memory:
        self._take_allocation()
        pointer = next(self._next)
        self.memory[pointer] = bytearray(b"\xaa" * nbytes)
        owner = Owner()
        weakref.finalize(owner, self._free, pointer, nbytes, stream)
        return Memory(pointer, nbytes, owner)

    def allocate_pinned(self, nbytes: int) -> Pinned:
        self._take_allocation()
        array = np.full(nbytes, 0xBB, np.uint8)
        address = next(self._next)
        self.pinned[address] = array
        return Pinned(array, address, array)

    def clear(self, pointer: int, nbytes: int, stream: int) -> None:
        self._require_context()
        self._refuse_in_capture(stream, "memset")
        self.work.append((stream, lambda: self.write(pointer, bytes(nbytes))))

    def upload(self, pointer: int, host_address: int, nbytes: int, stream: int) -> None:
        self._require_context()
        self._refuse_in_capture(stream, "copy")
        source = self.pinned[host_address]
        self.work.append((stream, lambda: self.write(pointer, source[:nbytes].tobytes())))

    def event(self) -> FakeEvent:
        return FakeEvent()

    def record(self, event: FakeEvent, stream: int) -> None:
        event.pending += 1

        def happen() -> None:
            event.pending -= 1

        self.work.append((stream, happen))

    def have_happened(self, events: Sequence[FakeEvent]) -> list[bool]:
        return [event.pending == 0 for event in events]

    def wait(self, event: FakeEvent) -> None:
        self.finish()

    def private_stream(self) -> Any:
        return SimpleNamespace(ptr=next(self._next), synchronize=self.finish)

    def launch(self, function: int, grid: int, *given: int) -> None:
        stream, arguments, _ = given[-3:]
        self._require_context()
        variant = self.functions[function]
        is_write = isinstance(variant, CacheWriteConfig)
        is_growth = isinstance(variant, GrowthConfig)
        dtype = _params_of(variant)
        block = ctypes.c_uint64.from_address(arguments).value
        values = np.frombuffer(ctypes.string_at(block, dtype.itemsize), dtype)[0]

        def compute() -> None:
            if is_growth:
                self._grow(values)
                return
            launch = Launch(variant, grid, stream, values)
            self.launches.append(launch if is_write else self._computed(launch))

        if stream in self.capturing:
            self.graphs.setdefault(self.capturing[stream], []).append(compute)
        else:
            self.work.append((stream, compute))

    # What tests do with it.

    def write(self, pointer: int, values: bytes) -> None:
        base = self._base(pointer)
        memory, at = self.memory[base], pointer - base
        assert at + len(values) <= len(memory), "written beyond the end"
        memory[at : at + len(values)] = values

    def read(self, pointer: int, nbytes: int) -> bytes:
        base = self._base(pointer)
        at = pointer - base
        assert at + nbytes <= len(self.memory[base]), "read beyond the end"
        return bytes(self.memory[base][at : at + nbytes])

    @property
    def bytes_held(self) -> int:
        """Bytes that somebody holds."""
        return sum(map(len, self.memory.values())) - self._bytes_free

    def finish(self, stream: int | None = None) -> None:
        """Do all work that has been asked for, or that of one stream."""
        todo = [what for where, what in self.work if stream in (None, where)]
        self.work = [entry for entry in self.work if stream is not None and entry[0] != stream]
        for what in todo:
            what()

    def replay(self, capture: int, stream: int) -> None:
        """Ask for what was captured."""
        self.work += [(stream, what) for what in self.graphs.get(capture, [])]

    def load_kernel(self, variant: Variant, device: int) -> Any:
        """Stands for `podrt.runtime.kernels.load_kernel`."""
        if variant not in self.functions:
            self.functions.append(variant)
        return SimpleNamespace(function=self.functions.index(variant))

    def _computed(self, launch: Launch) -> Launch:
        plan = int(launch.arguments["plan"])
        header = np.frombuffer(self.read(plan, PLAN_HEADER_BYTES), PLAN_HEADER_DTYPE)[0]
        counts = int(header["num_prefill_items"]), int(header["num_decode_items"])
        items = np.frombuffer(
            self.read(plan + PLAN_HEADER_BYTES, sum(counts) * WORK_ITEM.itemsize), WORK_ITEM
        )
        launch.header, launch.prefill, launch.decode = (
            header,
            items[: counts[0]],
            items[counts[0] :],
        )
        return launch

    def _grow(self, arguments: np.void) -> None:
        """Do what templates/plan/grow.cu.jinja does."""
        plan = int(arguments["plan"])
        header = np.frombuffer(self.read(plan, PLAN_HEADER_BYTES), PLAN_HEADER_DTYPE)[0]
        count, keys = int(arguments["num_items"]), int(arguments["num_keys"])
        assert not header["num_prefill_items"]
        assert header["num_decode_items"] == count
        at = plan + PLAN_HEADER_BYTES
        items = np.frombuffer(self.read(at, count * WORK_ITEM.itemsize), WORK_ITEM).copy()
        items["kv_len"] += keys
        items["kv_end"][items["split"] == items["num_splits"] - 1] += keys
        self.write(at, items.tobytes())
        for number in range(int(arguments["num_pages"])):
            entry = int(header["page_table"]) + 4 * int(arguments["entries"][number])
            self.write(entry, arguments["pages"][number].tobytes())

    def _take_allocation(self) -> None:
        self._require_context()
        if not self.allocations_left:
            raise MemoryError("the GPU is full")
        self.allocations_left -= 1
        self.allocations += 1

    def _free(self, pointer: int, nbytes: int, stream: int) -> None:
        self._bytes_free += nbytes
        self.work.append((stream, lambda: self.write(pointer, b"\xdd" * nbytes)))

    def _require_context(self) -> None:
        assert self.is_current(), "a call to CUDA from a thread without a context"

    def _base(self, pointer: int) -> int:
        return max(base for base in self.memory if base <= pointer)

    def _refuse_in_capture(self, stream: int, what: str) -> None:
        assert stream not in self.capturing, f"a {what} is captured into the graph"


def _params_of(kernel: Any) -> np.dtype[np.void]:
    """Return the parameters of a kernel, by its config."""
    if isinstance(kernel, CacheWriteConfig):
        return WRITE_PARAMS_DTYPE
    if isinstance(kernel, GrowthConfig):
        return GROWTH_PARAMS_DTYPE
    return struct_dtype(JOIN_PARAMS) if isinstance(kernel, JoinConfig) else params_dtype(kernel)


def _tensor_type() -> type:
    """Return a class that passes for `torch.Tensor`."""

    @dataclass(eq=False)
    class Tensor:
        shape: tuple[int, ...]
        pointer: int
        dtype: str = "torch.float16"
        device_number: int = 0
        strides: tuple[int, ...] = ()
        is_cuda: bool = True
        is_cpu: bool = False
        made: list[Any] = field(default_factory=list)

        def __post_init__(self) -> None:
            if not self.strides:
                steps = np.cumprod((1, *self.shape[:0:-1]))[::-1]
                self.strides = tuple(int(step) for step in steps)

        def __len__(self) -> int:
            return self.shape[0]

        def numel(self) -> int:
            return int(np.prod(self.shape))

        def stride(self) -> tuple[int, ...]:
            return self.strides

        def get_device(self) -> int:
            return self.device_number

        def data_ptr(self) -> int:
            return self.pointer

        def new_empty(self, shape: tuple[int, ...]) -> Any:
            made = type(self)(tuple(shape), self.pointer + (1 << 20), self.dtype)
            self.made.append(made)
            return made

    Tensor.__module__ = "torch"
    return Tensor


TorchTensor: Any = _tensor_type()


def install(monkeypatch: pytest.MonkeyPatch, info: DeviceInfo = H100) -> FakeGpu:
    """Let podrt find a GPU that is not there, with PyTorch's current stream at ``gpu.stream``."""
    from podrt import attention
    from podrt.kernels import tensor_map
    from podrt.runtime import growth, launcher, session, workspaces
    from podrt.tensors import streams

    def encode(*arguments: Any) -> int:
        return 0

    gpu: Any = FakeGpu()
    monkeypatch.setattr(
        tensor_map, "_driver", lambda: SimpleNamespace(cuTensorMapEncodeTiled=encode)
    )
    gpu.stream = 7
    monkeypatch.setattr(attention, "current_device", lambda: info)
    monkeypatch.setattr(attention, "device_info", lambda ordinal: info)
    monkeypatch.setattr(attention, "Driver", lambda ordinal: gpu)
    monkeypatch.setattr(launcher, "load_kernel", gpu.load_kernel)
    monkeypatch.setattr(session, "load_kernel", gpu.load_kernel)
    for module in (launcher, session):
        monkeypatch.setattr(module, "load_joiner", gpu.load_kernel)
    monkeypatch.setattr(growth, "load_grower", gpu.load_kernel)
    monkeypatch.setattr(workspaces, "uncaptured", nullcontext)
    monkeypatch.setattr(streams, "_torch_stream_of", lambda: lambda device: gpu.stream)
    return gpu  # type: ignore[no-any-return]
