"""From a variant to a loaded kernel."""

from __future__ import annotations

from podrt.jit import Build, LoadedKernel, build, load, on_reset
from podrt.kernels.families import Variant, source_of

_loaded: dict[tuple[Variant, int], LoadedKernel] = {}
on_reset(_loaded.clear)


def compile_variant(config: Variant) -> Build:
    """Compile a variant, or take it from the cache, without running it; needs no GPU.

    Raises
    ------
    CompileError
        NVRTC refused the source.
    MissingKernelError
        It is in no cache and ``PODRT_DISABLE_JIT`` is set.
    """
    return build(source_of(config))


def load_kernel(config: Variant, device: int) -> LoadedKernel:
    """Return a variant on a device, compiling and loading it the first time."""
    known = _loaded.get((config, device))
    if known is None:
        known = _loaded[config, device] = load(compile_variant(config), device)
    return known
