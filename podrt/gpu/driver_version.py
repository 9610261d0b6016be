"""Which NVIDIA driver this machine has, asked without a GPU, CuPy or NVML."""

from __future__ import annotations

import ctypes
import re
from functools import lru_cache
from pathlib import Path

_PROC = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b")


@lru_cache
def driver_version() -> str | None:
    """Return the driver's version, such as ``"580.95.05"``; None without a driver.

    Where the kernel does not tell it, as in some containers, ``"CUDA 13.0"``: what it supports.
    """
    try:
        found = _VERSION.search(_PROC.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    if found:
        return found[0]
    cuda = driver_cuda_version()
    return None if cuda is None else "CUDA {}.{}".format(*cuda)


def driver_cuda_version() -> tuple[int, int] | None:
    """Return the newest CUDA that the installed driver supports; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10
