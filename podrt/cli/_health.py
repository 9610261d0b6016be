"""What podrt finds on this machine, each finding with the command that mends it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from podrt import knobs
from podrt._version import __version__
from podrt.errors import PodrtError

State = Literal["ok", "missing", "optional"]

_DRIVER_URL = "https://www.nvidia.com/drivers"
#: Distributions that provide CuPy, by CUDA version and built from source.
_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
_CACHE_FIX = "set PODRT_CACHE_DIR to a folder that can be written, and unset PODRT_DISABLE_CACHE"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
        What was looked at, for example ``"CuPy"``.
    state : {"ok", "missing", "optional"}
        ``"optional"`` is absent too, but kernels run without it.
    detail : str
        Version, path or reason.
    fix : str
        Command or step that mends it; empty when there is nothing to do.
    """

    name: str
    state: State
    detail: str
    fix: str = ""


def findings() -> list[Finding]:
    """Look at everything that podrt uses, without failing on what is absent."""
    install = f"pip install 'podrt[{suggested_extra()}]'"
    return [
        Finding("podrt", "ok", __version__),
        _driver(),
        _gpu(),
        _distribution("CuPy", _CUPY, install),
        _distribution("cuda.core", ("cuda-core",), install),
        _nvrtc(install),
        _nvdisasm(),
        _cache(),
        _knobs(),
    ]


def can_run(found: list[Finding]) -> bool:
    """Whether kernels can be compiled and run: nothing that they need is missing."""
    return all(finding.state != "missing" for finding in found)


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


def suggested_extra() -> str:
    """Return the extra of podrt that fits the driver; the newest without one."""
    version = driver_cuda_version()
    return "cuda12" if version is not None and version < (13, 0) else "cuda13"


def _driver() -> Finding:
    version = driver_cuda_version()
    if version is None:
        return Finding("driver", "missing", "no libcuda.so.1", f"install from {_DRIVER_URL}")
    supports = "supports CUDA {}.{}".format(*version)
    if version < (12, 0):
        return Finding("driver", "missing", supports, f"update from {_DRIVER_URL}")
    return Finding("driver", "ok", supports)


def _gpu() -> Finding:
    from podrt.gpu.device import current_device

    try:
        device = current_device()
    except PodrtError as error:
        return Finding("GPU", "missing", str(error), "a GPU of compute capability 8.0 or newer")
    memory_gib = device.total_memory_bytes / 1024**3
    detail = f"{device.name}, {device.arch.name}, {device.num_sms} SMs, {memory_gib:.0f} GiB"
    return Finding("GPU", "ok", detail)


def _distribution(name: str, distributions: Sequence[str], fix: str) -> Finding:
    """Look for the first of several distributions that provide the same thing."""
    for distribution in distributions:
        try:
            return Finding(name, "ok", f"{distribution} {metadata.version(distribution)}")
        except metadata.PackageNotFoundError:
            continue
    return Finding(name, "missing", f"no {' or '.join(distributions)} installed", fix)


def _nvrtc(fix: str) -> Finding:
    from podrt.jit import nvrtc_version

    try:
        return Finding("NVRTC", "ok", "{}.{}".format(*nvrtc_version()))
    except PodrtError as error:
        return Finding("NVRTC", "missing", str(error), fix)


def _nvdisasm() -> Finding:
    from podrt.jit import find_nvdisasm

    path = find_nvdisasm()
    if path is None:
        fix = "pip install nvidia-cuda-nvdisasm"
        return Finding("nvdisasm", "optional", "not found; shows SASS", fix)
    return Finding("nvdisasm", "ok", path)


def _cache() -> Finding:
    from podrt.jit import open_cache

    cache = open_cache()
    if cache is None:
        return Finding("cache", "optional", "none: kernels stay in memory", _CACHE_FIX)
    entries = cache.list()
    size_mib = sum(entry.size_bytes for entry in entries) / 1024**2
    detail = f"{cache.path}: {len(entries)} kernels, {size_mib:.1f} MiB"
    if _writable(cache.path):
        return Finding("cache", "ok", detail)
    return Finding("cache", "optional", f"{detail}, cannot be written", _CACHE_FIX)


def _writable(folder: Path) -> bool:
    """Whether `folder` can be written, or made; nothing is made to find out."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _knobs() -> Finding:
    names = [knob.variable for knob in knobs.list_knobs() if os.environ.get(knob.variable)]
    detail = ", ".join(f"{name}={os.environ[name]}" for name in names)
    return Finding("knobs", "ok", detail or "none set")
