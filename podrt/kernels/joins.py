"""The kernel that joins rows over their own keys and a shared prefix: config, source, arguments."""

from __future__ import annotations

from typing import NamedTuple

from podrt.jit import KernelSource
from podrt.kernels.argument_block import ArgumentBlock
from podrt.kernels.arguments import (
    BUFFERS,
    HEADS,
    OUTPUT_STRIDES,
    PLAN_STRUCTS,
    Buffers,
    shared_arguments,
)
from podrt.kernels.structs import Field, render_struct
from podrt.kernels.variant import DTYPE_TAGS
from podrt.plan.joins import JOINED_TILE_FIELDS, JOINED_TOKEN_FIELDS
from podrt.spec.attention import AttentionSpec
from podrt.spec.types import DType
from podrt.tensors.run_tensors import RunTensors

_WARP = 32
#: More CTAs than that take turns.
_MOST_CTAS_PER_SM = 8
#: Results and sinks, whose addresses change from run to run, are the first of `BUFFERS`.
_CHANGING = 3

PARAMS = (
    *BUFFERS,
    *OUTPUT_STRIDES,
    *HEADS,
    Field("int", "sinks_stride", ""),
)


class JoinConfig(NamedTuple):
    """One variant of the kernel.

    Attributes
    ----------
    arch : str
        For example ``"sm_90a"``.
    value_dim : int
        Elements of a row, a multiple of 8.
    dtype : {"bfloat16", "float16"}
        Element type of the results.
    """

    arch: str
    value_dim: int
    dtype: DType
    threads: int = 256
    smem_bytes: int = 0

    @property
    def name(self) -> str:
        """Readable name, different for different variants."""
        return f"join_prefixes_{self.arch}_{DTYPE_TAGS[self.dtype]}_d{self.value_dim}"


def source_of(config: JoinConfig) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    structs = (("JoinedToken", JOINED_TOKEN_FIELDS), ("JoinedTile", JOINED_TILE_FIELDS))
    return KernelSource.rendered(
        "merge/joins.cu.jinja",
        config,
        plan_structs=PLAN_STRUCTS,
        join_structs="\n\n".join(
            render_struct(name, tuple(Field("int", field, doc) for field, doc in fields))
            for name, fields in structs
        ),
        params_struct=render_struct("Params", PARAMS),
    )


def ctas_of(config: JoinConfig, num_rows: int, num_sms: int) -> int:
    """Return the grid of a launch for so many rows of all heads."""
    return min(-(-num_rows * _WARP // config.threads), _MOST_CTAS_PER_SM * num_sms)


class JoinArguments:
    """The arguments of launches over tensors of one layout."""

    def __init__(self, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers) -> None:
        shared = shared_arguments(spec, tensors, buffers)
        fixed = {field.name: shared[field.name] for field in PARAMS[_CHANGING:]}
        self._block = ArgumentBlock(PARAMS, _CHANGING, **fixed)

    def point_to(
        self, q: int, k_cache: int, v_cache: int, out: int, lse: int, sinks: int, rows: int
    ) -> int:
        """Take the addresses of a run; return what the driver takes. Inputs are not read again."""
        del q, k_cache, v_cache, rows
        self._block.change(out, lse, sinks)
        return self._block.address

    def __bytes__(self) -> bytes:
        return bytes(self._block)
