"""Outputs of the caller's kind: allocated before the launch, handed over after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from podrt.gpu.device import load_cupy
from podrt.tensors.streams import LEGACY_STREAMS, cupy_stream
from podrt.tensors.view import TensorView, numpy_dtype


def empty_like_caller(
    example: TensorView,
    shape: tuple[int, ...],
    dtype: str = "same",
    stream: int = 0,
) -> Any:
    """Allocate an uninitialised output where `example` lies.

    PyTorch gets a torch tensor; host memory of all others a NumPy array; a GPU of all others a CuPy
    array, which `finish` turns into what the caller expects.

    Parameters
    ----------
    example : TensorView
        The input whose framework and device the output takes after.
    shape : tuple of int
        Shape of the output, row-major.
    dtype : str
        Name of the element type; ``"same"`` is that of `example`.
    stream : int
        Handle of the launch stream. It is made current for the allocation, so that the framework's
        caching allocator hands the memory out again only in the order of that stream.
    """
    name = example.dtype if dtype == "same" else dtype
    if example.framework == "torch":
        return _empty_torch(example, shape, name, stream)
    if example.device is None:
        return np.empty(shape, numpy_dtype(name))
    with _cupy_stream(example.device, stream):
        return load_cupy().empty(shape, numpy_dtype(name))


def finish(output: Any, example: TensorView, stream: int = 0) -> Any:
    """Hand over an output of `empty_like_caller` once the launch has been enqueued on `stream`.

    For JAX, whose arrays cannot be written, the memory becomes a JAX array now, and JAX's streams
    wait for `stream`. Any other output is returned as it is.

    Notes
    -----
    JAX does not know of the launch, so its inputs must be kept alive until an output is ready.
    """
    if example.framework != "jax":
        return output
    if example.device is None:
        import jax

        return jax.device_put(output, jax.devices("cpu")[0])
    from jax import dlpack

    # CuPy makes JAX wait for CuPy's current stream.
    with _cupy_stream(example.device, stream):
        return dlpack.from_dlpack(output)


def _empty_torch(example: TensorView, shape: tuple[int, ...], dtype: str, stream: int) -> Any:
    import torch

    device = example.owner.device
    with nullcontext() if example.device is None else _torch_stream(device, stream):
        return torch.empty(shape, dtype=getattr(torch, dtype), device=device)


def _torch_stream(device: Any, handle: int) -> AbstractContextManager[Any]:
    """Make the stream PyTorch's current one, unless it is."""
    import torch

    handle = _null_if_legacy(handle)
    if torch.cuda.current_stream(device).cuda_stream == handle:
        return nullcontext()
    stream = (
        torch.cuda.ExternalStream(handle, device) if handle else torch.cuda.default_stream(device)
    )
    return torch.cuda.stream(stream)  # type: ignore[no-any-return]


@contextmanager
def _cupy_stream(device: int, handle: int) -> Iterator[None]:
    """Make the device CuPy's current one, and the stream current on it."""
    with load_cupy().cuda.Device(device), cupy_stream(_null_if_legacy(handle)):
        yield


def _null_if_legacy(handle: int) -> int:
    # Both handles are one stream, but the allocators' pools tell them apart.
    return 0 if handle in LEGACY_STREAMS else handle
