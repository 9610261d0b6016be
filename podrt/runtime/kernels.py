"""From a variant to a loaded kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from podrt.jit import Build, LoadedKernel, build, load, on_reset
from podrt.kernels import growth, joins
from podrt.kernels.families import Variant, source_of
from podrt.kernels.growth import GrowthConfig
from podrt.kernels.joins import JoinConfig
from podrt.kernels.tracing import traced

#: By variant, device and whether it is instrumented.
_loaded: dict[tuple[Variant, int, bool], LoadedKernel] = {}
on_reset(_loaded.clear)
_joiners: dict[tuple[JoinConfig, int], LoadedKernel] = {}
on_reset(_joiners.clear)

_instrumented: ContextVar[bool] = ContextVar("instrumented", default=False)


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
    key = config, device, _instrumented.get()
    known = _loaded.get(key)
    if known is None:
        built = build(traced(source_of(config))) if key[2] else compile_variant(config)
        known = _loaded[key] = load(built, device)
    return known


def load_joiner(config: JoinConfig, device: int) -> LoadedKernel:
    """Return the kernel that joins rows on a device, compiling and loading it the first time."""
    known = _joiners.get((config, device))
    if known is None:
        known = _joiners[config, device] = load(build(joins.source_of(config)), device)
    return known


def load_grower(config: GrowthConfig, device: int) -> LoadedKernel:
    """Return the kernel that makes plans longer on a device."""
    return load(build(growth.source_of(config)), device)


@contextmanager
def instrumented_kernels() -> Iterator[None]:
    """Have what this thread loads meanwhile be instrumented builds (`podrt.kernels.tracing`).

    Plans and runs that load kernels inside keep them; others are as ever.
    """
    token = _instrumented.set(True)
    try:
        yield
    finally:
        _instrumented.reset(token)
