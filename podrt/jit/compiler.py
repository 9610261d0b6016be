"""From a `KernelSource` to machine code, without any cache."""

from __future__ import annotations

import time

from podrt.errors import CompileError
from podrt.jit.artifact import Build, Resources
from podrt.jit.key import Recipe, recipe_of
from podrt.jit.nvrtc import Output, run_nvrtc
from podrt.jit.source import KernelSource


def compile_source(source: KernelSource) -> Build:
    """Compile `source` to a cubin for its architecture; needs no GPU.

    Raises
    ------
    CompileError
        If NVRTC refuses the text or an option.
    DeviceError
        If NVRTC is not installed.
    """
    return compile_recipe(recipe_of(source))


def compile_recipe(recipe: Recipe) -> Build:
    """Compile what `recipe` holds; raises like `compile_source`."""
    start = time.perf_counter()
    output = _run(recipe.source, recipe.options)
    return Build(
        recipe=recipe,
        cubin=output.cubin,
        log=output.log,
        resources=Resources.from_log(output.log),
        compile_time_s=time.perf_counter() - start,
        origin="compiled",
    )


def compile_ptx(source: KernelSource) -> str:
    """Return the PTX that NVRTC makes on its way to the cubin; raises like `compile_source`."""
    # A virtual architecture stops NVRTC before ptxas, which takes most of the time.
    virtual = source.arch.replace("sm_", "compute_")
    _, *others = recipe_of(source).options
    return _run(source, (f"--gpu-architecture={virtual}", *others)).ptx.rstrip(b"\0").decode()


def _run(source: KernelSource, options: tuple[str, ...]) -> Output:
    output = run_nvrtc(source.text, f"{source.name}.cu", options, source.headers)
    if not output.succeeded:
        raise CompileError(source.name, source.text, options, output.log, source.headers)
    return output
