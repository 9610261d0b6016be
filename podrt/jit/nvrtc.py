"""NVRTC itself: text and options in; log, PTX and cubin out. Needs no GPU and no driver.

`cuda.core.Program` asks the driver for its version before it gives PTX, so podrt calls the
bindings below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from podrt.errors import DeviceError


@dataclass(frozen=True)
class Output:
    """What one run of NVRTC gave; `ptx` and `cubin` are empty where it made none."""

    succeeded: bool
    log: str
    ptx: bytes = b""
    cubin: bytes = b""


@cache
def nvrtc_version() -> tuple[int, int]:
    """Return ``(major, minor)`` of the NVRTC in use; raises DeviceError if there is none."""
    nvrtc = _bindings()
    major, minor = _checked(nvrtc.nvrtcVersion())
    return int(major), int(minor)


def run_nvrtc(text: str, file_name: str, options: tuple[str, ...]) -> Output:
    """Compile `text`. A refusal is an `Output` with its log, not an exception."""
    nvrtc = _bindings()
    (program,) = _checked(nvrtc.nvrtcCreateProgram(text.encode(), file_name.encode(), 0, [], []))
    try:
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        log = _fetch(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        text_log = log.rstrip(b"\0").decode(errors="replace").strip()
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            return Output(False, text_log or status.name)
        return Output(
            True,
            text_log,
            ptx=_fetch(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program),
            cubin=_fetch(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program),
        )
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@cache
def _bindings() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library, which may be missing where the bindings are not
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"NVRTC is needed to compile kernels and was not found ({error}). "
            "Install it with: pip install 'podrt[cuda13]' (or podrt[cuda12])"
        ) from error
    return nvrtc


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *values = result
    if int(status) != 0:
        raise DeviceError(f"NVRTC failed outside of a compilation: {status.name}")
    return tuple(values)


def _fetch(get_size: Any, get_bytes: Any, program: Any) -> bytes:
    (size,) = _checked(get_size(program))
    # A bytearray: NVRTC writes into the buffer, and bytes objects of one byte are shared.
    buffer = bytearray(size)
    if size:
        _checked(get_bytes(program, buffer))
    return bytes(buffer)
