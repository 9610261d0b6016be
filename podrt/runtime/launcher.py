"""Prepared launches: one kernel over tensors of one layout; a launch only changes addresses.

What a batch's plan holds lies on the GPU (`podrt.kernels.arguments.PLAN_HEADER`), so a prepared
launch outlives plans; what it holds of the workspace does not outlive the workspace's buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from podrt.jit import LoadedKernel
from podrt.kernels.arguments import Buffers
from podrt.kernels.families import Variant, argument_block, variant_for
from podrt.kernels.family import Arguments
from podrt.kernels.joins import JoinArguments, JoinConfig
from podrt.runtime.driver import Driver, LaunchShape, launch_shape
from podrt.runtime.kernels import load_joiner, load_kernel
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors
from podrt.tensors.view import TensorView

#: Layouts whose launches are kept; one is usual.
_MOST_LAYOUTS = 8


class Layout(NamedTuple):
    """How a run's tensors lie, wherever they do and however many rows q has."""

    q: tuple[int, ...]
    k_cache: tuple[tuple[int, ...], tuple[int, ...]]
    v_cache: tuple[tuple[int, ...], tuple[int, ...]]
    out: tuple[int, ...]
    lse: tuple[int, ...] | None
    sinks: tuple[int, ...] | None

    @classmethod
    def of(cls, tensors: RunTensors) -> Layout:
        """Return that of a run."""
        return cls(
            tensors.q.strides,
            _shape_and_strides(tensors.k_cache),
            _shape_and_strides(tensors.v_cache),
            tensors.out.strides,
            tensors.lse.strides if tensors.lse else None,
            tensors.sinks.strides if tensors.sinks else None,
        )


def _shape_and_strides(tensor: TensorView) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tensor.shape, tensor.strides


#: A prepared launch, for `Driver.launch`: what is given the addresses of q, k_cache, v_cache, out,
#: lse and sinks, 0 for none, and the rows of q, and returns the arguments; the shape of the launch;
#: the kernel, which keeps its code loaded.
Step = tuple[Callable[[int, int, int, int, int, int, int], int], LaunchShape, LoadedKernel]
#: Those of a batch, in order.
Steps = tuple[Step, ...]


class Launcher:
    """One kernel with its arguments, for tensors of one layout and one workspace.

    Not for two threads at once: the arguments are changed in place.
    """

    def __init__(
        self, config: Variant | JoinConfig, kernel: LoadedKernel, arguments: Arguments
    ) -> None:
        self._kernel = kernel
        self._threads, self._smem_bytes = config.threads, config.smem_bytes
        self._point_to = arguments.point_to

    @classmethod
    def of(
        cls,
        driver: Driver,
        variant: Variant,
        spec: AttentionSpec,
        tensors: RunTensors,
        buffers: Buffers,
    ) -> Launcher:
        """Return that of a variant, or of the one that is to read such tensors in its place."""
        variant.require_spec(spec)
        variant = variant_for(variant, tensors)
        kernel = load_kernel(variant, driver.ordinal)
        return cls(variant, kernel, argument_block(variant, spec, tensors, buffers))

    @classmethod
    def that_joins(
        cls,
        driver: Driver,
        config: JoinConfig,
        spec: AttentionSpec,
        tensors: RunTensors,
        buffers: Buffers,
    ) -> Launcher:
        """Return that of the kernel which joins what others have left."""
        kernel = load_joiner(config, driver.ordinal)
        return cls(config, kernel, JoinArguments(spec, tensors, buffers))

    def step(self, grid: int) -> Step:
        """Return the launch of so many CTAs."""
        kernel = self._kernel
        shape = launch_shape(kernel.function, grid, self._threads, self._smem_bytes)
        return self._point_to, shape, kernel


#: Prepared launches by kernel.
LaunchersByKernel = dict[Variant | JoinConfig, Launcher]


class Launchers:
    """The prepared launches of one workspace."""

    def __init__(self) -> None:
        self._by_layout: dict[Layout, LaunchersByKernel] = {}

    def clear(self) -> None:
        """Forget all of them, for whoever holds some too."""
        for launchers in self._by_layout.values():
            launchers.clear()

    def of(self, layout: Layout) -> LaunchersByKernel:
        """Return those for tensors of a layout, to be added to."""
        if layout not in self._by_layout:
            if len(self._by_layout) == _MOST_LAYOUTS:
                self._by_layout.pop(next(iter(self._by_layout)))
            self._by_layout[layout] = {}
        return self._by_layout[layout]
