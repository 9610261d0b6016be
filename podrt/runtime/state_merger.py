"""Merges of attention states on one GPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from podrt.gpu.device import device_info
from podrt.jit import LoadedKernel, build, load, on_reset
from podrt.kernels.merge_states import (
    MOST_STATES,
    THREADS,
    MergeConfig,
    arguments_of,
    ctas_of,
    source_of,
)
from podrt.runtime.checks import require_outputs_last
from podrt.runtime.driver import Driver, launch_shape
from podrt.tensors.merge_states import (
    MergeTensors,
    require_kernel_can_merge,
    view_states,
    with_outputs,
)
from podrt.tensors.streams import resolve_stream
from podrt.tensors.view import TensorView


class StateMerger:
    """Merges on one GPU, for any number of threads and streams.

    Nothing of a merge outlives its launches, so they may be captured into graphs.
    """

    def __init__(self, ordinal: int) -> None:
        self._driver = Driver(ordinal)
        self._arch = device_info(ordinal).arch.name
        self._kernels: dict[MergeConfig, LoadedKernel] = {}

    def merge(
        self, outs: Any, lses: Any, out: Any, lse: Any, dtype: Any, stream: Any
    ) -> tuple[Any, Any]:
        """Enqueue a merge; arguments, results and errors as `podrt.merge_states`."""
        with self._driver.current():
            first = outs[0] if isinstance(outs, list | tuple) else outs
            handle = resolve_stream(stream, like=first)
            states = view_states(outs, lses, handle)
            if out is None or lse is None or len(states[0]) > MOST_STATES:
                is_captured = self._driver.is_capturing(handle)
                require_outputs_last(first, is_captured=is_captured)
            tensors = with_outputs(states, out, lse, dtype, handle)
            require_kernel_can_merge(tensors)
            self._launch_all(tensors, handle)
            return tensors.results(handle)

    def _launch_all(self, tensors: MergeTensors, stream: int) -> None:
        """Merge any number of states: groups of many into float32, and those in the end."""
        if not tensors.out.shape[0] * tensors.out.shape[1] * tensors.out.shape[2]:
            return
        outs, lses = tensors.outs, tensors.lses
        while len(outs) > MOST_STATES:
            merged = self._grouped(outs, lses, stream)
            outs = tuple(each.out for each in merged)
            lses = tuple(each.lse for each in merged)
        self._launch(tensors._replace(outs=outs, lses=lses), stream)

    def _grouped(
        self, outs: tuple[TensorView, ...], lses: tuple[TensorView, ...], stream: int
    ) -> list[MergeTensors]:
        """Merge groups of states into memory that is used in the order of the stream."""
        groups = []
        for begin in range(0, len(outs), MOST_STATES):
            group = slice(begin, begin + MOST_STATES)
            merged = with_outputs((outs[group], lses[group]), None, None, "float32", stream)
            self._launch(merged, stream)
            groups.append(merged)
        return groups

    def _launch(self, tensors: MergeTensors, stream: int) -> None:
        out = tensors.out
        tokens, heads, head_dim = out.shape
        config = MergeConfig(self._arch, head_dim, tensors.outs[0].dtype, out.dtype)
        kernel = self._kernels.get(config)
        if kernel is None:
            kernel = self._kernels[config] = load_merger(config, self._driver.ordinal)
        arguments = arguments_of(tensors)
        # What the driver takes: an array of the address of the one argument, copied by the launch.
        addresses = np.array([arguments.ctypes.data], np.uint64)
        grid = ctas_of(config, tokens * heads)
        shape = launch_shape(kernel.function, grid, THREADS, 0)
        self._driver.launch(*shape, stream, addresses.ctypes.data, 0)


def load_merger(config: MergeConfig, device: int) -> LoadedKernel:
    """Return the kernel on a device, compiling and loading it the first time."""
    return load(build(source_of(config)), device)


_mergers: dict[int, StateMerger] = {}
on_reset(_mergers.clear)
os.register_at_fork(after_in_child=_mergers.clear)


def merger_of(device: int) -> StateMerger:
    """Return what merges on a GPU."""
    merger = _mergers.get(device)
    return merger or _mergers.setdefault(device, StateMerger(device))
