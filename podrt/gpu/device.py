"""The GPU as podrt sees it: CuPy on demand, and what one device offers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from podrt.errors import DeviceError
from podrt.gpu.arch import Arch, arch_of
from podrt.gpu.cupy_folder import VARIABLE, ensure_cupy_folder

#: cudaDevAttrMemoryClockRate (kHz) and cudaDevAttrGlobalMemoryBusWidth (bits)
_MEMORY_ATTRIBUTES = (36, 37)

#: Bandwidth of the memory of a usual GPU by compute capability, from its data sheet: A100 40GB,
#: RTX 3090, Orin, L40S, H100 SXM, B200, B300, RTX 5090, GB10.
_USUAL_MEMORY_GBS = {
    (8, 0): 1555.0,
    (8, 6): 936.0,
    (8, 7): 204.0,
    (8, 9): 864.0,
    (9, 0): 3352.0,
    (10, 0): 8000.0,
    (10, 3): 8000.0,
    (12, 0): 1792.0,
    (12, 1): 273.0,
}

#: What to do about the CUDA errors of a machine that cannot run kernels.
_ADVICE = {
    "cudaErrorInsufficientDriver": "install an NVIDIA driver, or one new enough for this CuPy",
    "cudaErrorNoDevice": "no GPU is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES",
    "cudaErrorInvalidDevice": "there is no GPU of that number",
}


@dataclass(frozen=True)
class DeviceInfo:
    """What podrt needs to know of one GPU.

    Attributes
    ----------
    ordinal : int
        CUDA device number.
    name : str
        Product name, for example ``"NVIDIA H100 80GB HBM3"``.
    arch : Arch
        Architecture and its limits.
    num_sms : int
        Streaming multiprocessors.
    total_memory_bytes, l2_bytes : int
        Size of the device memory and of the L2 cache.
    memory_gbs : float
        Bandwidth of the device memory by its clock and bus width, in GB/s; where the driver does
        not tell them, that of a usual GPU of the architecture.
    """

    ordinal: int
    name: str
    arch: Arch
    num_sms: int
    total_memory_bytes: int
    l2_bytes: int
    memory_gbs: float


def load_cupy() -> Any:
    """Import and return CuPy.

    Raises
    ------
    DeviceError
        CuPy is not installed, or cannot be imported, or has no folder for its own kernels.
    """
    try:
        ensure_cupy_folder()
        import cupy
    except OSError as error:
        raise DeviceError(
            f"CuPy cannot make a folder for its own kernels ({error}): set {VARIABLE} to a folder "
            "that can be written"
        ) from error
    except ImportError as error:
        raise DeviceError(
            f"work on a GPU needs CuPy ({error}): pip install 'podrt[cuda13]', "
            "or 'podrt[cuda12]' for a CUDA 12 driver"
        ) from error
    return cupy


def checked_ordinal(device: Any) -> int:
    """Return a CUDA device number; TypeError or ValueError if it cannot be one."""
    if not isinstance(device, int) or isinstance(device, bool):
        raise TypeError(f"device={device!r}: expected a CUDA device number, or None")
    if device < 0:
        raise ValueError(f"device={device}: must be at least 0")
    return device


def current_device() -> DeviceInfo:
    """Return the calling thread's current GPU.

    Raises
    ------
    DeviceError
        There is no CuPy, no driver or no GPU.
    UnsupportedConfigError
        The GPU is older than podrt supports.
    """
    cupy = load_cupy()
    try:
        ordinal: int = cupy.cuda.runtime.getDevice()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise _device_error("the current GPU", error) from error
    return device_info(ordinal)


@lru_cache
def device_info(ordinal: int) -> DeviceInfo:
    """Return GPU number `ordinal`; asked of the driver once. Raises as `current_device` does."""
    cupy = load_cupy()
    try:
        properties = cupy.cuda.runtime.getDeviceProperties(ordinal)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise _device_error(f"GPU {ordinal}", error) from error
    arch = arch_of((properties["major"], properties["minor"]))
    return DeviceInfo(
        ordinal=ordinal,
        name=properties["name"].decode(),
        arch=arch,
        num_sms=properties["multiProcessorCount"],
        total_memory_bytes=properties["totalGlobalMem"],
        l2_bytes=properties["l2CacheSize"],
        memory_gbs=_memory_gbs(ordinal) or _USUAL_MEMORY_GBS[arch.compute_capability],
    )


def part_of(gpu: DeviceInfo, num_sms: int) -> DeviceInfo:
    """Return a GPU of which work has some SMs alone, and the memory together with others.

    Raises
    ------
    ValueError
        The GPU has fewer.
    """
    if num_sms > gpu.num_sms:
        raise ValueError(
            f"num_sms={num_sms}: {gpu.name} has {gpu.num_sms}; pass what the green context has, or "
            "None for all"
        )
    return replace(gpu, num_sms=num_sms)


def _memory_gbs(ordinal: int) -> float:
    """Return the bandwidth of a GPU's memory, which moves data on both edges of its clock.

    Virtual GPUs and those that share the CPU's memory may state a clock or a width of 0.
    """
    attribute = load_cupy().cuda.runtime.deviceGetAttribute
    clock_khz, bus_bits = (attribute(number, ordinal) for number in _MEMORY_ATTRIBUTES)
    return float(2 * clock_khz * (bus_bits / 8) / 1e6)


def _device_error(what: str, error: Exception) -> DeviceError:
    code = str(error).partition(":")[0]
    advice = _ADVICE.get(code)
    return DeviceError(f"cannot use {what}: {error}" + (f" ({advice})" if advice else ""))
