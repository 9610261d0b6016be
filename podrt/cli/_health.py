"""What podrt finds on this machine, each finding with the command that mends it."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from podrt import knobs
from podrt._version import __version__
from podrt.errors import PodrtError, UnsupportedConfigError
from podrt.gpu import cupy_folder
from podrt.gpu.driver_version import driver_cuda_version
from podrt.jit.files import is_writable

State = Literal["ok", "missing", "optional"]

_DRIVER_URL = "https://www.nvidia.com/drivers"
#: Distributions that provide CuPy and their CUDA, None being the one built from source.
_CUPY = {"cupy-cuda13x": 13, "cupy-cuda12x": 12, "cupy": None}
#: Older ones ignore the byte_offset of DLPack.
_CUDA_CORE_FLOOR = (1, 2)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is found out here anyway
        return [
            Finding("podrt", "ok", __version__),
            _driver(),
            _cupy(install),
            *_cupy_folder(),  # before CuPy is imported
            _gpu(),
            _cuda_core(install),
            _nvrtc(install),
            _nvdisasm(),
            _cache(),
            *_record(),
            _knobs(),
        ]


def can_run(found: list[Finding]) -> bool:
    """Whether kernels can be compiled and run: nothing that they need is missing."""
    return all(finding.state != "missing" for finding in found)


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


def _cupy(install: str) -> Finding:
    found = {name: _version(name) for name in _CUPY if _version(name)}
    if not found:
        return Finding("CuPy", "missing", f"no {' or '.join(_CUPY)} installed", install)
    detail = ", ".join(f"{name} {version}" for name, version in found.items())
    remove = f"pip uninstall {' '.join(found)}, then {install}"
    if len(found) > 1:
        return Finding("CuPy", "missing", f"{detail} overwrite each other", remove)
    (name,) = found
    if problem := _too_new(_CUPY[name]):
        return Finding("CuPy", "missing", f"{detail} {problem}", remove)
    return Finding("CuPy", "ok", detail)


def _cupy_folder() -> list[Finding]:
    named = os.environ.get(cupy_folder.VARIABLE)
    fix = f"set {cupy_folder.VARIABLE} to a folder that can be written"
    if find_spec("cupy") is None:
        return []
    if named is not None and not is_writable(Path(named).absolute()):
        return [Finding("CuPy folder", "missing", f"{named} cannot be written", fix)]
    if named is not None or cupy_folder.default_is_usable():
        return [Finding("CuPy folder", "ok", named or "in the home folder")]
    detail = "none in the home folder: CuPy's own kernels are kept for one process only"
    return [Finding("CuPy folder", "optional", detail, fix)]


def _gpu() -> Finding:
    from podrt.gpu.device import current_device

    try:
        device = current_device()
    except UnsupportedConfigError as error:
        return Finding("GPU", "missing", str(error), "a GPU of compute capability 8.0 or newer")
    except Exception as error:  # whatever keeps CuPy from being imported, too
        return Finding("GPU", "missing", str(error))
    memory_gib = device.total_memory_bytes / 1024**3
    detail = f"{device.name}, {device.arch.name}, {device.num_sms} SMs, {memory_gib:.0f} GiB"
    return Finding("GPU", "ok", detail)


def _cuda_core(install: str) -> Finding:
    version = _version("cuda-core")
    if version is None:
        return Finding("cuda.core", "missing", "no cuda-core installed", install)
    detail = f"cuda-core {version}"
    if tuple(map(int, version.split(".")[:2])) < _CUDA_CORE_FLOOR:
        fix = "pip install 'cuda-core>={}.{}'".format(*_CUDA_CORE_FLOOR)
        return Finding("cuda.core", "missing", f"{detail} misplaces slices of tensors", fix)
    return Finding("cuda.core", "ok", detail)


def _nvrtc(install: str) -> Finding:
    from podrt.jit import nvrtc_release, nvrtc_version

    try:
        major, minor = nvrtc_version()
        release = nvrtc_release()  # compiles, which needs all parts of NVRTC
    except PodrtError as error:
        return Finding("NVRTC", "missing", str(error), install)
    patch = re.search(r"V(\d+\.\d+\.\d+)", release)
    detail = patch[1] if patch else f"{major}.{minor}"
    if problem := _too_new(major):
        return Finding("NVRTC", "missing", f"{detail} {problem}", install)
    return Finding("NVRTC", "ok", detail)


def _too_new(cuda: int | None) -> str:
    """Say so if the driver is too old for code of that CUDA; empty otherwise, or without one."""
    driver = driver_cuda_version()
    if cuda is None or driver is None or driver[0] >= cuda:
        return ""
    return "needs a driver of CUDA {}, and this one supports {}.{}".format(cuda, *driver)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _nvdisasm() -> Finding:
    from podrt.jit import find_nvdisasm

    path = find_nvdisasm()
    if path is None:
        fix = "pip install nvidia-cuda-nvdisasm"
        return Finding("nvdisasm", "optional", "not found; shows SASS", fix)
    return Finding("nvdisasm", "ok", path)


def _cache() -> Finding:
    from podrt.cli.cache import problem_of
    from podrt.jit import open_cache

    try:
        cache = open_cache()
    except ValueError as error:
        return Finding("cache", "missing", str(error), "correct or unset the variable")
    if cache is None:
        return Finding("cache", "optional", "none: kernels stay in memory", _CACHE_FIX)
    if problem := problem_of(cache.path):
        return Finding("cache", "optional", f"{problem}: kernels stay in memory", _CACHE_FIX)
    entries = cache.list()
    size_mib = sum(entry.size_bytes for entry in entries) / 1024**2
    detail = f"{cache.path}: {len(entries)} kernels, {size_mib:.1f} MiB"
    if cache.is_writable:
        return Finding("cache", "ok", detail)
    return Finding("cache", "optional", f"{detail}, cannot be written", _CACHE_FIX)


def _record() -> list[Finding]:
    """Say whose measurements predictions for this GPU are from; nothing without a GPU."""
    from podrt.gpu.device import current_device
    from podrt.policy.calibration import record_of

    try:
        record = record_of(current_device())
    except Exception:  # the GPU and the cache have findings of their own
        return []
    if record.kind == "tuned":
        return [Finding("record", "ok", f"predictions are from {record}")]
    fix = "podrt tune measures this GPU" if record.kind == "likest" else ""
    state: State = "optional" if fix else "ok"
    return [Finding("record", state, f"predictions are from {record}", fix)]


def _knobs() -> Finding:
    known = [knob for knob in knobs.list_knobs() if os.environ.get(knob.variable)]
    detail = ", ".join(f"{knob.variable}={os.environ[knob.variable]}" for knob in known)
    for knob in known:
        try:
            knob()
        except ValueError as error:
            return Finding("knobs", "missing", str(error), "correct or unset the variable")
    return Finding("knobs", "ok", detail or "none set")
