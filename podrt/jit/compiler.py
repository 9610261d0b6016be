"""From a `KernelSource` to machine code, without any cache."""

from __future__ import annotations

import time

from podrt.errors import CompileError
from podrt.jit.artifact import Build, Resources
from podrt.jit.key import cache_key, nvrtc_options
from podrt.jit.nvrtc import Output, nvrtc_version, run_nvrtc
from podrt.jit.render import include_option
from podrt.jit.source import KernelSource


def compile_source(source: KernelSource) -> Build:
    """Compile `source` to a cubin for its architecture; needs no GPU.

    Raises
    ------
    CompileError
        If NVRTC refuses the text or an option.
    DeviceError
        If NVRTC is not installed.
    FileNotFoundError
        If an included header is missing.
    """
    key = cache_key(source)
    start = time.perf_counter()
    output = _run(source, nvrtc_options(source))
    return Build(
        source=source,
        key=key,
        cubin=output.cubin,
        log=output.log,
        resources=Resources.from_log(output.log),
        compile_time_s=time.perf_counter() - start,
        nvrtc_version=nvrtc_version(),
        origin="compiled",
    )


def compile_ptx(source: KernelSource) -> str:
    """Return the PTX that NVRTC makes on its way to the cubin; raises like `compile_source`."""
    # A virtual architecture stops NVRTC before ptxas, which takes most of the time.
    virtual = source.arch.replace("sm_", "compute_")
    _, *others = nvrtc_options(source)
    return _run(source, (f"--gpu-architecture={virtual}", *others)).ptx.rstrip(b"\0").decode()


def _run(source: KernelSource, options: tuple[str, ...]) -> Output:
    options = (*options, include_option())
    output = run_nvrtc(source.text, f"{source.name}.cu", options)
    if not output.succeeded:
        raise CompileError(source.name, source.text, options, output.log)
    return output
