"""The arguments of the portable kernels over tensors of one layout."""

from __future__ import annotations

from typing import Any

from podrt.kernels.argument_block import ArgumentBlock
from podrt.kernels.arguments import Buffers, shared_arguments, short_strides
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.portable.host import PARAMS
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors

#: q, k, v, out, lse and sinks.
_CHANGING = 6


class PortableArguments:
    """Arguments in which a launch changes addresses."""

    def __init__(
        self, config: KernelConfig, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
    ) -> None:
        fixed = fixed_arguments(spec, tensors, buffers)
        self._block = ArgumentBlock(PARAMS, _CHANGING, **fixed)

    def point_to(
        self, q: int, k_cache: int, v_cache: int, out: int, lse: int, sinks: int, rows: int
    ) -> int:
        """Take the addresses of a run whose q has `rows` rows; return what the driver takes."""
        block = self._block
        block.change(q, k_cache, v_cache, out, lse, sinks)
        return block.address

    def __bytes__(self) -> bytes:
        return bytes(self._block)


def fixed_arguments(spec: AttentionSpec, tensors: RunTensors, buffers: Buffers) -> dict[str, Any]:
    """Return the arguments that no launch changes."""
    strides = {
        f"{name}_stride_{axis}": stride
        for name, cache in (("k", tensors.k_cache), ("v", tensors.v_cache))
        for axis, stride in zip(("page", "token", "head"), short_strides(cache), strict=False)
    }
    return {
        **shared_arguments(spec, tensors, buffers),
        **strides,
        "num_pages": tensors.k_cache.shape[0],
    }
