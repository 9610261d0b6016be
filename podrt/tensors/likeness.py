"""Whether a tensor is like another, but for address and first extent: in half a microsecond.

Describing a tensor in full (`podrt.tensors.view`) and checking it takes ten times as long, which a
model would pay for every tensor of every layer. What is unlike is not wrong: it takes the long way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from podrt.tensors.frameworks import framework_of

#: Given a tensor, returns its address; 0 if it is unlike the example.
Address = Callable[[Any], int]


def address_if_like(example: Any, *, any_length: bool = False) -> Address | None:
    """Return a function that tells the address of tensors like `example`.

    Type, element type, strides, device and shape must be the same. None for tensors of frameworks
    other than PyTorch and CuPy. The function does not keep the example alive.

    Parameters
    ----------
    example : tensor on a GPU
        What others are compared with.
    any_length : bool
        The first extent may differ.
    """
    framework = framework_of(example)
    if framework == "torch":
        return _like_torch(example, any_length)
    if framework == "cupy":
        return _like_cupy(example, any_length)
    return None


def _like_torch(example: Any, any_length: bool) -> Address:
    kind, dtype, strides = type(example), example.dtype, example.stride()
    shape, device = tuple(example.shape), example.get_device()
    tail = shape[1:]

    def address(tensor: Any) -> int:
        if (
            type(tensor) is kind
            and tensor.dtype is dtype
            and tensor.stride() == strides
            and tensor.get_device() == device
            and (tensor.shape[1:] == tail if any_length else tensor.shape == shape)
        ):
            return tensor.data_ptr()  # type: ignore[no-any-return]
        return 0

    return address


def _like_cupy(example: Any, any_length: bool) -> Address:
    kind, dtype, strides = type(example), example.dtype, example.strides
    shape, device = example.shape, example.data.device_id
    tail = shape[1:]

    def address(array: Any) -> int:
        if type(array) is not kind or array.dtype != dtype or array.strides != strides:
            return 0
        memory = array.data
        if memory.device_id != device or (
            array.shape[1:] != tail if any_length else array.shape != shape
        ):
            return 0
        return memory.ptr  # type: ignore[no-any-return]

    return address
