"""Writes to the pages of caches on one GPU, with prepared launches."""

from __future__ import annotations

import os
import threading
from typing import Any

from podrt.gpu.device import device_info
from podrt.jit import LoadedKernel, build, load, on_reset
from podrt.kernels.cache_write import (
    THREADS,
    CacheWriteArguments,
    CacheWriteConfig,
    ctas_of,
    source_of,
)
from podrt.runtime.driver import Driver, LaunchShape, launch_shape
from podrt.tensors.cache_write import WriteTensors, view_write_tensors
from podrt.tensors.checks import ALIGNMENT_BYTES
from podrt.tensors.likeness import addresses_if_like
from podrt.tensors.streams import current_stream_getter, resolve_stream

#: Layouts whose launches are kept; one is usual.
_MOST_LAYOUTS = 4


class CacheWriter:
    """Writes of new keys and values on one GPU, for any number of threads and streams.

    Nothing of a write outlives its launch but how its tensors lie, so writes may be captured into
    graphs without further ado.
    """

    def __init__(self, ordinal: int) -> None:
        self._driver = Driver(ordinal)
        self._lock = threading.Lock()
        self._prepared: list[PreparedWrite] = []  # the last used first

    def write(
        self,
        k: Any,
        v: Any,
        k_cache: Any,
        v_cache: Any,
        slot_mapping: Any,
        kv_layout: str,
        stream: Any,
    ) -> None:
        """Launch a write; arguments and errors as `podrt.write_cache`."""
        with self._lock:
            for prepared in self._prepared:
                if prepared.write(k, v, k_cache, v_cache, slot_mapping, kv_layout, stream):
                    return
            with self._driver.current():
                handle = resolve_stream(stream, like=k)
                tensors = view_write_tensors(
                    k, v, k_cache, v_cache, slot_mapping, kv_layout, handle
                )
                prepared = PreparedWrite(self._driver, tensors, kv_layout)
                prepared.launch(tensors, handle)
            if prepared.is_repeatable:
                self._prepared = [prepared, *self._prepared][:_MOST_LAYOUTS]


class PreparedWrite:
    """Launches over tensors of one layout. Anything unlike is left to the long way.

    Not for two threads at once: the arguments are changed in place.

    Attributes
    ----------
    arguments : CacheWriteArguments
    """

    def __init__(self, driver: Driver, tensors: WriteTensors, kv_layout: str) -> None:
        _, page_size, self._heads, head_dim = tensors.k_cache.shape
        value_dim = tensors.v_cache.shape[3]
        self._elements = head_dim + value_dim
        arch = device_info(driver.ordinal).arch.name
        v_head_dim = None if value_dim == head_dim else value_dim
        self._kernel = load_writer(
            CacheWriteConfig(arch, head_dim, page_size, v_head_dim), driver.ordinal
        )
        self._driver, self._kv_layout = driver, kv_layout
        self.arguments = CacheWriteArguments(tensors)
        self._framework = tensors.k.framework
        self._current_stream = current_stream_getter(self._framework)
        self._slots_kind = type(tensors.slots.owner)
        self._slots_dtype = getattr(tensors.slots.owner, "dtype", None)
        owners = tensors.k.owner, tensors.k_cache.owner, tensors.v_cache.owner, tensors.v.owner
        # A single token may have strides that would be wrong for more, as may an empty tensor.
        usual = min(tensors.k.shape[0], tensors.v.shape[0]) > 1
        # k and v stand where a run's q and out do: any number of rows, the same for both.
        self._addresses = addresses_if_like(*owners) if usual else None
        self.is_repeatable = (
            self._addresses is not None and tensors.slots.framework == self._framework
        )

    def launch(self, tensors: WriteTensors, stream: int) -> None:
        """Enqueue the write of tensors that were checked."""
        if tensors.num_tokens:
            k, v, k_cache, v_cache, slots = (tensor.pointer for tensor in tensors)
            self.launch_at(k, v, k_cache, v_cache, slots, tensors.num_tokens, stream)

    def write(
        self,
        k: Any,
        v: Any,
        k_cache: Any,
        v_cache: Any,
        slot_mapping: Any,
        kv_layout: str,
        stream: Any,
    ) -> bool:
        """Enqueue a write if its tensors are like those that were checked; say whether."""
        found = self._addresses(k, k_cache, v_cache, v) if self._addresses else None
        if found is None or kv_layout != self._kv_layout or not self._driver.is_current():
            return False
        slots, num_tokens = self._slots(slot_mapping)
        at_k, at_k_cache, at_v_cache, at_v, rows = found
        if (
            not 0 < num_tokens <= rows
            or not (at_k and at_v and at_k_cache and at_v_cache and slots)
            or (at_k | at_v | at_k_cache | at_v_cache) % ALIGNMENT_BYTES
        ):
            return False
        if stream is None:
            handle = self._current_stream(self._driver.ordinal)
        else:
            handle = resolve_stream(stream)
        self.launch_at(at_k, at_v, at_k_cache, at_v_cache, slots, num_tokens, handle)
        return True

    def _slots(self, slot_mapping: Any) -> tuple[int, int]:
        """Return address and number of slots that can be read like those that were checked.

        0 of them if they cannot.
        """
        if type(slot_mapping) is not self._slots_kind or slot_mapping.dtype != self._slots_dtype:
            return 0, 0
        if self._framework == "torch":
            if slot_mapping.stride() != (1,) or slot_mapping.get_device() != self._driver.ordinal:
                return 0, 0
            return slot_mapping.data_ptr(), slot_mapping.numel()  # len takes ten times as long
        memory = slot_mapping.data
        if slot_mapping.strides != (8,) or memory.device_id != self._driver.ordinal:
            return 0, 0
        return int(memory.ptr), len(slot_mapping)

    def launch_at(
        self,
        k: int,
        v: int,
        k_cache: int,
        v_cache: int,
        slots: int,
        num_tokens: int,
        stream: int,
    ) -> None:
        """Enqueue the write of some tokens, at least one, over tensors at these addresses."""
        arguments = self.arguments
        arguments.change(k, v, k_cache, v_cache, slots, num_tokens)
        self._driver.launch(*self.launch_shape(num_tokens), stream, arguments.address, 0)

    def launch_shape(self, num_tokens: int) -> LaunchShape:
        """Return that of a write of so many tokens."""
        grid = ctas_of(num_tokens, self._heads, self._elements)
        return launch_shape(self._kernel.function, grid, THREADS, 0)


def load_writer(config: CacheWriteConfig, device: int) -> LoadedKernel:
    """Return the kernel on a device, compiling and loading it the first time."""
    return load(build(source_of(config)), device)


_writers: dict[int, CacheWriter] = {}
_lock = threading.Lock()
on_reset(_writers.clear)


def writer_of(device: int) -> CacheWriter:
    """Return what writes on a GPU, of which there is one."""
    writer = _writers.get(device)
    if writer is None:
        with _lock:
            writer = _writers.setdefault(device, CacheWriter(device))
    return writer


def _renew() -> None:
    """Forget, in a forked child, locks that other threads may hold."""
    global _lock
    _lock = threading.Lock()
    _writers.clear()


os.register_at_fork(after_in_child=_renew)
