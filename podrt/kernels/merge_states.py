"""The kernel that merges attention over disjoint keys: config, source, arguments."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.jit import KernelSource
from podrt.kernels.structs import Field, fill_struct, render_struct, struct_dtype
from podrt.kernels.variant import DTYPE_TAGS
from podrt.tensors.merge_states import VECTOR, MergeTensors
from podrt.tensors.view import TensorView

#: Most states of a launch: what describes them must fit the 4 KiB of a kernel's parameters.
MOST_STATES = 64
THREADS = 256
_WARP = 32

#: Arguments in memory order. Strides are in elements.
PARAMS = (
    Field("const void*", "outs", "of each state", MOST_STATES),
    Field("const float*", "lses", "of each state", MOST_STATES),
    Field("i64", "out_stride_token", "", MOST_STATES),
    Field("i64", "out_stride_head", "", MOST_STATES),
    Field("i64", "lse_stride_token", "", MOST_STATES),
    Field("i64", "lse_stride_head", "", MOST_STATES),
    Field("void*", "out", ""),
    Field("float*", "lse", ""),
    Field("i64", "merged_stride_token", "of out"),
    Field("i64", "merged_stride_head", ""),
    Field("i64", "merged_lse_stride_token", "of lse"),
    Field("i64", "merged_lse_stride_head", ""),
    Field("i64", "num_rows", "tokens times heads"),
    Field("i64", "num_heads", ""),
    Field("int", "num_states", ""),
)
PARAMS_DTYPE = struct_dtype(PARAMS)

_ELEMENT_TYPES = {"bfloat16": "Bf16", "float16": "Half", "float32": "Float32"}
_TAGS = {**DTYPE_TAGS, "float32": "f32"}


class MergeConfig(NamedTuple):
    """One variant of the kernel, for any number of states up to `MOST_STATES`.

    Attributes
    ----------
    arch : str
        For example ``"sm_90a"``.
    head_dim : int
        Elements of a head, a multiple of 8.
    dtype, out_dtype : {"bfloat16", "float16", "float32"}
        Element types of the states' outputs and of the merged one.
    """

    arch: str
    head_dim: int
    dtype: str
    out_dtype: str
    threads: int = THREADS

    @property
    def lanes(self) -> int:
        """Threads of a row: a power of two, so that a warp has whole rows."""
        vectors = min(self.head_dim // VECTOR, _WARP)
        return 1 << (vectors - 1).bit_length()

    @property
    def name(self) -> str:
        """Readable name, different for different variants."""
        types = f"{_TAGS[self.dtype]}_to_{_TAGS[self.out_dtype]}"
        return f"merge_states_{self.arch}_d{self.head_dim}_{types}"


def source_of(config: MergeConfig) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    return KernelSource.rendered(
        "merge/states.cu.jinja",
        config,
        params_struct=render_struct("Params", PARAMS),
        element_types=_ELEMENT_TYPES,
    )


def ctas_of(config: MergeConfig, num_rows: int) -> int:
    """Return the grid of a launch for so many rows."""
    return -(-num_rows * config.lanes // config.threads)


def arguments_of(tensors: MergeTensors) -> npt.NDArray[np.void]:
    """Return the argument of a launch over tensors of at most `MOST_STATES` states."""
    tokens, heads, _ = tensors.out.shape
    out_strides, lse_strides = tensors.out.strides, tensors.lse.strides
    outs, lses = tensors.outs, tensors.lses
    return fill_struct(
        PARAMS_DTYPE,
        outs=_of_states([each.pointer for each in outs]),
        lses=_of_states([each.pointer for each in lses]),
        out_stride_token=_strides(outs, 0),
        out_stride_head=_strides(outs, 1),
        lse_stride_token=_strides(lses, 0),
        lse_stride_head=_strides(lses, 1),
        out=tensors.out.pointer,
        lse=tensors.lse.pointer,
        merged_stride_token=out_strides[0],
        merged_stride_head=out_strides[1],
        merged_lse_stride_token=lse_strides[0],
        merged_lse_stride_head=lse_strides[1],
        num_rows=tokens * heads,
        num_heads=heads,
        num_states=len(outs),
    )


def _strides(states: tuple[TensorView, ...], axis: int) -> bytes:
    return _of_states([each.strides[axis] for each in states])


def _of_states(values: list[int]) -> bytes:
    """Return 64-bit numbers of all states, as the struct has them."""
    filled = np.zeros(MOST_STATES, np.int64)
    filled[: len(values)] = np.array(values, np.uint64 if min(values) >= 0 else np.int64)
    return filled.tobytes()
