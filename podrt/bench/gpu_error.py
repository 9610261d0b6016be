"""Whether the GPU still works after what other people's code, or a kernel, did on it."""

from __future__ import annotations

from typing import Any

from podrt.errors import DeviceError
from podrt.gpu.device import load_cupy


def gpu_error() -> Exception | None:
    """Return what is wrong with the GPU, once all its work is done; None while it lives."""
    cuda: Any = load_cupy().cuda
    try:
        cuda.runtime.deviceSynchronize()
    except cuda.runtime.CUDARuntimeError as error:
        return error  # type: ignore[no-any-return]
    return None


def require_gpu(when: str, what_next: str) -> None:
    """Raise DeviceError if the GPU has stopped working; the text says when, and what to do."""
    error = gpu_error()
    if error is not None:
        raise DeviceError(f"the GPU stopped working {when}: {error}; {what_next}") from error
