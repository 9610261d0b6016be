"""The tensors of a merge of attention states: viewed, checked, outputs allocated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from podrt.errors import UnsupportedConfigError
from podrt.spec.types import dtype_name
from podrt.tensors.checks import (
    require_alignment,
    require_dtype,
    require_rank,
    require_same_device,
    require_unit_stride,
    require_writable,
)
from podrt.tensors.outputs import empty_like_caller, finish
from podrt.tensors.view import TensorView, view

#: Element types of outputs.
MERGED_DTYPES = ("bfloat16", "float16", "float32")
#: Elements that a thread of the kernel takes at once.
VECTOR = 8

_OUT_LAYOUT = "[tokens, num_heads, head_dim]"
_LSE_LAYOUT = "[tokens, num_heads]"


class MergeTensors(NamedTuple):
    """Views of a merge's tensors, a view for each state.

    `out_tensor` and `lse_tensor` are the outputs themselves; `is_given` tells which of them are the
    caller's own and not allocated here.
    """

    outs: tuple[TensorView, ...]
    lses: tuple[TensorView, ...]
    out: TensorView
    lse: TensorView
    out_tensor: Any
    lse_tensor: Any
    is_given: tuple[bool, bool]

    def results(self, stream: int = 0) -> tuple[Any, Any]:
        """Return out and lse as the caller gets them once the work is on `stream`."""
        tensors = self.out_tensor, self.lse_tensor
        out, lse = (
            tensor if given else finish(tensor, self.outs[0], stream)
            for tensor, given in zip(tensors, self.is_given, strict=True)
        )
        return out, lse


def view_states(
    outs: Any, lses: Any, stream: int = 0
) -> tuple[tuple[TensorView, ...], tuple[TensorView, ...]]:
    """View and check outputs and log-sum-exps of states: one tensor of all, or one of each.

    Raises
    ------
    ValueError, TypeError
        Names the argument, what was got and what is expected.
    """
    out_views = _views_of(outs, "outs", _OUT_LAYOUT, stream)
    lse_views = _views_of(lses, "lses", _LSE_LAYOUT, stream)
    if not out_views:
        raise ValueError("outs: got no state, expected at least one")
    if len(lse_views) != len(out_views):
        raise ValueError(
            f"lses: got {len(lse_views)} states, outs have {len(out_views)}; expected a "
            "log-sum-exp for each output"
        )
    first = out_views[0]
    for out in out_views:
        _require_like(out, first, first.shape)
        require_dtype(out, *(MERGED_DTYPES if out is first else (first.dtype,)))
    for lse in lse_views:
        _require_like(lse, first, first.shape[:2])
        require_dtype(lse, "float32")
    return out_views, lse_views


def with_outputs(
    states: tuple[tuple[TensorView, ...], tuple[TensorView, ...]],
    out: Any,
    lse: Any,
    dtype: Any,
    stream: int = 0,
) -> MergeTensors:
    """Take or allocate the outputs of states that were checked; raises as `view_states`."""
    outs, lses = states
    first = outs[0]
    is_given = out is not None, lse is not None
    name = None if dtype is None else dtype_name(dtype, MERGED_DTYPES)
    if out is None:
        out = empty_like_caller(first, first.shape, name or "same", stream)
    out_view = view(out, "out", stream)
    require_rank(out_view, 3, _OUT_LAYOUT)
    _require_like(out_view, first, first.shape)
    require_dtype(out_view, *(MERGED_DTYPES if name is None else (name,)))
    if lse is None:
        lse = empty_like_caller(first, first.shape[:2], "float32", stream)
    lse_view = view(lse, "lse", stream)
    require_rank(lse_view, 2, _LSE_LAYOUT)
    _require_like(lse_view, first, first.shape[:2])
    require_dtype(lse_view, "float32")
    for output in (out_view, lse_view):
        require_writable(output)
    return MergeTensors(outs, lses, out_view, lse_view, out, lse, is_given)


def require_kernel_can_merge(tensors: MergeTensors) -> None:
    """Check what the kernel needs beyond right shapes: whole vectors, aligned.

    Raises
    ------
    ValueError, UnsupportedConfigError
        Names the argument, what was got and what is expected.
    """
    head_dim = tensors.out.shape[2]
    if head_dim % VECTOR:
        raise UnsupportedConfigError(
            f"outs: got head_dim={head_dim}, allowed on a GPU are multiples of {VECTOR}"
        )
    for tensor in (*tensors.outs, tensors.out):
        require_unit_stride(tensor)
        require_alignment(tensor)


def _views_of(tensors: Any, name: str, layout: str, stream: int) -> tuple[TensorView, ...]:
    """View each state of a list, or of one tensor that has them along its first axis."""
    rank = layout.count(",") + 1
    if isinstance(tensors, list | tuple):
        views = tuple(view(each, f"{name}[{i}]", stream) for i, each in enumerate(tensors))
        for each in views:
            require_rank(each, rank, layout)
        return views
    stacked = view(tensors, name, stream)
    require_rank(stacked, rank + 1, f"[states, {layout[1:]}, or a list of {layout}")
    step_bytes = stacked.strides[0] * stacked.itemsize
    return tuple(
        replace(
            stacked,
            name=f"{name}[{i}]",
            pointer=stacked.pointer + i * step_bytes,
            shape=stacked.shape[1:],
            strides=stacked.strides[1:],
        )
        for i in range(stacked.shape[0])
    )


def _require_like(tensor: TensorView, first: TensorView, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(
            f"{tensor.name}: got shape {tensor.shape}, expected {shape} as {first.name} has "
            f"{first.shape}"
        )
    require_same_device(first, tensor)
