"""Prepared launches of the kernel that joins rows over their own keys and over a prefix."""

from __future__ import annotations

from podrt.jit import LoadedKernel, build, load, on_reset
from podrt.kernels.arguments import Buffers
from podrt.kernels.joins import JoinArguments, JoinConfig, source_of
from podrt.runtime.driver import Driver
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors

_loaded: dict[tuple[JoinConfig, int], LoadedKernel] = {}
on_reset(_loaded.clear)


def load_joiner(config: JoinConfig, device: int) -> LoadedKernel:
    """Return the kernel on a device, compiling and loading it the first time."""
    known = _loaded.get((config, device))
    if known is None:
        known = _loaded[config, device] = load(build(source_of(config)), device)
    return known


class Joiner:
    """A launch for tensors of one layout and one workspace; used as a `Launcher`."""

    def __init__(
        self,
        driver: Driver,
        config: JoinConfig,
        spec: AttentionSpec,
        tensors: RunTensors,
        buffers: Buffers,
    ) -> None:
        self._driver, self._threads = driver, config.threads
        self._kernel = load_joiner(config, driver.ordinal)
        self._arguments = JoinArguments(spec, tensors, buffers)

    def launch(
        self,
        q: int,
        k_cache: int,
        v_cache: int,
        out: int,
        lse: int,
        sinks: int,
        rows: int,
        grid: int,
        stream: int,
    ) -> None:
        """Enqueue the kernel; what it reads besides lies in the workspace."""
        del q, k_cache, v_cache, rows
        arguments = self._arguments.point_to(out, lse, sinks)
        self._driver.launch(self._kernel.function, grid, self._threads, 0, stream, arguments)
