"""What a launch asks of its tensors; each check names the argument, what it is and what it must be.

Extents of 1 are never stepped over, and nothing is in a tensor with an extent of 0, so strides of
such dimensions and tensors do not matter.
"""

from __future__ import annotations

from podrt.tensors.view import TensorView


def require_rank(view: TensorView, rank: int, layout: str) -> None:
    """Raise ValueError unless `view` has `rank` dimensions; `layout` names them for the message."""
    if len(view.shape) != rank:
        raise ValueError(
            f"{view.name}: got shape {view.shape}, expected {rank} dimensions {layout}"
        )


def require_dtype(view: TensorView, *allowed: str) -> None:
    """Raise TypeError unless the element type is one of `allowed`."""
    if view.dtype not in allowed:
        raise TypeError(
            f"{view.name}: got dtype {view.dtype}, expected {' or '.join(allowed)}; "
            f"cast it with {_cast(view, allowed[0])}"
        )


def require_gpu(view: TensorView) -> None:
    """Raise ValueError unless `view` lies on a GPU."""
    if view.device is None:
        raise ValueError(f"{view.name}: lies in host memory, expected a tensor on a CUDA GPU")


def require_same_device(reference: TensorView, *views: TensorView) -> None:
    """Raise ValueError unless all `views` lie where `reference` lies."""
    for view in views:
        if view.device != reference.device:
            raise ValueError(
                f"{view.name}: lies on {view.place}, expected {reference.place} "
                f"as for {reference.name}"
            )


def require_unit_stride(view: TensorView) -> None:
    """Raise ValueError unless neighbours along the last dimension are neighbours in memory."""
    if view.shape[-1] > 1 and view.strides[-1] != 1 and 0 not in view.shape:
        raise ValueError(
            f"{view.name}: got strides {view.strides} (in elements), expected 1 for the last "
            "dimension; pass a tensor whose last dimension is contiguous"
        )


#: Of every row of the tensors that kernels copy from and to.
ALIGNMENT_BYTES = 16


def require_alignment(view: TensorView, alignment_bytes: int = ALIGNMENT_BYTES) -> None:
    """Raise ValueError unless every row along the last dimension starts on `alignment_bytes`."""
    if view.pointer % alignment_bytes:
        raise ValueError(
            f"{view.name}: starts at address {view.pointer:#x}, expected a multiple of "
            f"{alignment_bytes} bytes"
        )
    step = alignment_bytes // view.itemsize
    steps = zip(view.shape[:-1], view.strides[:-1], strict=True)
    if 0 not in view.shape and any(extent > 1 and stride % step for extent, stride in steps):
        raise ValueError(
            f"{view.name}: got strides {view.strides} (in elements), expected multiples of {step} "
            f"for all but the last dimension, so that rows start on {alignment_bytes} bytes"
        )


def require_writable(view: TensorView) -> None:
    """Raise ValueError if `view` is read-only, or broadcasts so that elements share memory."""
    if not view.writable:
        raise ValueError(f"{view.name}: is read-only, expected a tensor that can be written")
    dimensions = zip(view.shape, view.strides, strict=True)
    if 0 not in view.shape and any(extent > 1 and stride == 0 for extent, stride in dimensions):
        raise ValueError(
            f"{view.name}: got strides {view.strides} (in elements), expected none of 0, "
            "because elements that share memory cannot be written"
        )


def _cast(view: TensorView, dtype: str) -> str:
    if view.framework == "torch":
        return f"{view.name}.to(torch.{dtype})"
    target = "ml_dtypes.bfloat16" if dtype == "bfloat16" else f'"{dtype}"'
    return f"{view.name}.astype({target})"
