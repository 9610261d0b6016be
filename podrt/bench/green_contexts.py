"""Parts of a GPU's SMs, each with a stream: green contexts, as serving systems use them today."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from podrt.errors import DeviceError
from podrt.gpu.device import load_cupy


class Part(NamedTuple):
    """Some SMs of a GPU.

    Attributes
    ----------
    stream : CuPy stream
        What is enqueued there runs on those SMs alone.
    num_sms : int
        How many there are.
    """

    stream: Any
    num_sms: int


@cache  # a process has one pair for each size, and they live as long as it does
def partition(ordinal: int, num_sms: int) -> tuple[Part, Part]:
    """Return at least so many SMs of a GPU, as few more as the driver can, and all others.

    Raises
    ------
    DeviceError
        The driver refuses, or so many SMs leave none for the others.
    """
    from cuda.bindings import driver

    device = _checked(driver.cuDeviceGet(ordinal), "cuDeviceGet")
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    all_sms = _checked(driver.cuDeviceGetDevResource(device, kind), "cuDeviceGetDevResource")
    groups, _, others = _checked(
        driver.cuDevSmResourceSplitByCount(1, all_sms, 0, num_sms), "cuDevSmResourceSplitByCount"
    )
    if not others.sm.smCount:
        raise DeviceError(
            f"green contexts: {groups[0].sm.smCount} of {all_sms.sm.smCount} SMs for one side "
            "leave none for the other; give it fewer"
        )
    return _part(driver, device, groups[0]), _part(driver, device, others)


def _part(driver: Any, device: Any, sms: Any) -> Part:
    described = _checked(driver.cuDevResourceGenerateDesc([sms], 1), "cuDevResourceGenerateDesc")
    flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM.value
    context = _checked(driver.cuGreenCtxCreate(described, device, flags), "cuGreenCtxCreate")
    flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
    stream = _checked(driver.cuGreenCtxStreamCreate(context, flags, 0), "cuGreenCtxStreamCreate")
    return Part(load_cupy().cuda.ExternalStream(int(stream), int(device)), int(sms.sm.smCount))


def _checked(answer: tuple[Any, ...], call: str) -> Any:
    """Return what a driver call gives beside its status, or raise DeviceError."""
    status, *found = answer
    if status != 0:
        raise DeviceError(f"green contexts: {call} answers {status.name}; they need CUDA 12.4")
    return found[0] if len(found) == 1 else tuple(found)
