"""A cubin on a device: load it, ask about it, launch it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.errors import DeviceError
from podrt.gpu.device import load_cupy
from podrt.jit.artifact import Build
from podrt.jit.memory import on_reset


@dataclass(frozen=True)
class KernelAttributes:
    """What the driver says of a loaded kernel.

    Attributes
    ----------
    registers : int
        32-bit registers of one thread.
    local_bytes : int
        Local memory of one thread.
    static_smem_bytes, max_dynamic_smem_bytes : int
        Shared memory of one CTA: fixed, and the most that a launch may ask for.
    max_threads : int
        Most threads of one CTA.
    """

    registers: int
    local_bytes: int
    static_smem_bytes: int
    max_dynamic_smem_bytes: int
    max_threads: int


class _Stream(NamedTuple):
    """The one thing that CuPy's launch reads of a stream."""

    ptr: int


class LoadedKernel:
    """A kernel on one device. Made by `load`; calls from several threads are fine.

    Attributes
    ----------
    build : Build
        What was loaded.
    device_id : int
        CUDA device number.
    attributes : KernelAttributes
        Registers, local memory and limits.
    function : int
        ``CUfunction`` as a number, with all shared memory allowed.
    """

    def __init__(self, build: Build, device_id: int) -> None:
        self.build, self.device_id = build, device_id
        self._cuda: Any = load_cupy().cuda
        with self._cuda.Device(device_id):
            self._module: Any = self._cuda.function.Module()
            self._module.load(build.cubin)
            self._function: Any = self._module.get_function(build.source.entry)
            self.function: int = self._function.ptr
            self.attributes = _opt_in_to_smem(self._cuda, self._function.ptr, device_id)

    def __call__(
        self,
        grid: tuple[int, ...],
        args: npt.NDArray[np.void],
        *,
        smem_bytes: int,
        threads: int,
        stream_handle: int,
    ) -> None:
        """Launch the kernel; returns at once, without waiting for the device.

        Parameters
        ----------
        grid : tuple of int
            CTAs in x, y and z; one to three numbers, each at least 1.
        args : structured array of size 1
            The kernel's only parameter, passed by value; may be changed after the call.
        smem_bytes : int
            Dynamic shared memory of one CTA.
        threads : int
            Threads of one CTA.
        stream_handle : int
            ``cudaStream_t`` of this device as a number; 0 is the legacy default stream.

        Raises
        ------
        ValueError
            If `grid` is empty, or `smem_bytes` or `threads` more than `attributes` allow.
        """
        self._check_launch(grid, smem_bytes, threads)
        with self._cuda.Device(self.device_id):
            # CuPy asks NumPy to describe the type of every argument: cheap for plain bytes only.
            packed = args.view(f"V{args.itemsize}")
            self._function(grid, (threads,), (packed,), smem_bytes, _Stream(stream_handle))

    def address_of(self, symbol: str) -> int:
        """Return where a global variable of the kernel's module lies on the device."""
        with self._cuda.Device(self.device_id):
            return int(self._module.get_global_var(symbol))

    def _check_launch(self, grid: tuple[int, ...], smem_bytes: int, threads: int) -> None:
        # CuPy would turn a zero into a one and launch a CTA that nobody asked for.
        if not 1 <= len(grid) <= 3 or min(grid) < 1:
            raise ValueError(f"grid={grid}: expected one to three numbers of at least 1")
        for name, value, least, most in (
            ("smem_bytes", smem_bytes, 0, self.attributes.max_dynamic_smem_bytes),
            ("threads", threads, 1, self.attributes.max_threads),
        ):
            if not least <= value <= most:
                raise ValueError(
                    f"{name}={value}: {self.build.source.name} takes {least} to {most}"
                )


_lock = threading.Lock()
_loaded: dict[tuple[str, int], LoadedKernel] = {}


def load(build: Build, device_id: int) -> LoadedKernel:
    """Return `build` on device `device_id`, loading it the first time.

    Raises
    ------
    DeviceError
        If CuPy, a driver or that device is missing, or the device cannot run the cubin.
    """
    with _lock:
        kernel = _loaded.get((build.key, device_id))
        if kernel is None:
            kernel = _loaded[build.key, device_id] = _load(build, device_id)
    return kernel


@on_reset
def _forget() -> None:
    with _lock:
        _loaded.clear()


def _renew_lock() -> None:
    """Open the lock in a forked child, which has none of the threads that may hold it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _load(build: Build, device_id: int) -> LoadedKernel:
    cupy = load_cupy()
    try:
        return LoadedKernel(build, device_id)
    except (cupy.cuda.driver.CUDADriverError, cupy.cuda.runtime.CUDARuntimeError) as error:
        raise DeviceError(
            f"{build.source.name} (compiled for {build.source.arch}) could not be loaded on "
            f"device {device_id}: {error}"
        ) from error


def _opt_in_to_smem(cuda: Any, function: int, device_id: int) -> KernelAttributes:
    """Let launches use all the shared memory of the device; without this 48 KiB is the limit."""
    driver = cuda.driver

    def get(attribute: int) -> int:
        return int(driver.funcGetAttribute(attribute, function))

    static_smem_bytes = get(driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
    optin = cuda.runtime.deviceGetAttribute(
        cuda.runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, device_id
    )
    dynamic_smem_bytes = int(optin) - static_smem_bytes
    driver.funcSetAttribute(
        function, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic_smem_bytes
    )
    return KernelAttributes(
        registers=get(driver.CU_FUNC_ATTRIBUTE_NUM_REGS),
        local_bytes=get(driver.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES),
        static_smem_bytes=static_smem_bytes,
        max_dynamic_smem_bytes=dynamic_smem_bytes,
        max_threads=get(driver.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
    )
