"""The clock of the SMs, where nvidia-ml-py and the driver tell it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from podrt.gpu.device import load_cupy


def sm_clock_reader() -> Callable[[], int | None]:
    """Return a function that reads the current GPU's SM clock in MHz, or gives None."""
    nvml = _nvml()
    if nvml is None:
        return lambda: None
    runtime = load_cupy().cuda.runtime
    try:
        device = nvml.nvmlDeviceGetHandleByPciBusId(
            runtime.deviceGetPCIBusId(runtime.getDevice()).encode()
        )
        nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)
    except nvml.NVMLError:  # containers may hide it
        return lambda: None
    return lambda: int(nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM))


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, such as ``"580.95.05"``; None if unknown."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        version = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError:
        return None
    return version.decode() if isinstance(version, bytes) else str(version)


def _nvml() -> Any:
    """Import and initialise NVML; None where there is none."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
