"""NVRTC itself: text and options in; log, PTX and cubin out. Needs no GPU and no driver.

`cuda.core.Program` asks the driver for its version before it gives PTX, so podrt calls the
bindings below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from podrt.errors import DeviceError
from podrt.jit.fork import no_fork

_INSTALL = "Install it with: pip install 'podrt[cuda13]' (or podrt[cuda12])"


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
    with no_fork():
        major, minor = _checked(_bindings().nvrtcVersion())
    return int(major), int(minor)


@cache
def nvrtc_release() -> str:
    """Return what this NVRTC says of itself, down to the patch release and the build.

    It has no function for that; the head of the PTX that it makes tells.

    Raises
    ------
    DeviceError
        If there is no NVRTC, or a part of it is missing.
    """
    output = run_nvrtc("", "nothing.cu", ("--gpu-architecture=compute_80",))
    if not output.succeeded:
        raise DeviceError(f"NVRTC cannot compile anything: {output.log}. {_INSTALL}")
    lines = (line.strip("/ ") for line in output.ptx.decode().splitlines() if line[:2] == "//")
    return "; ".join(filter(None, lines))


def run_nvrtc(
    text: str,
    file_name: str,
    options: tuple[str, ...],
    headers: Sequence[tuple[str, str]] = (),
) -> Output:
    """Compile `text`, which may include `headers` by their names, and no other files.

    A refusal is an `Output` with its log, not an exception.
    """
    names = [name.encode() for name, _ in headers]
    texts = [header.encode() for _, header in headers]
    with no_fork():
        nvrtc = _bindings()
        (program,) = _checked(
            nvrtc.nvrtcCreateProgram(text.encode(), file_name.encode(), len(names), texts, names)
        )
        try:
            return _compile(nvrtc, program, [option.encode() for option in options])
        finally:
            nvrtc.nvrtcDestroyProgram(program)


def _compile(nvrtc: Any, program: Any, options: list[bytes]) -> Output:
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
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


@cache
def _bindings() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library, which may be missing where the bindings are not
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"NVRTC is needed to compile kernels and was not found ({error}). {_INSTALL}"
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
