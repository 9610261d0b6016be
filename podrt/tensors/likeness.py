"""Whether tensors are like others, but for their addresses and number of rows: in microseconds.

Describing tensors in full (`podrt.tensors.view`) and checking them takes ten times as long, which a
model would pay in every layer. What is unlike is not wrong: it takes the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from podrt.tensors.frameworks import framework_of

#: Given a tensor, returns its address; 0 if it is unlike the example.
Address = Callable[[Any], int]
#: Given q, k_cache, v_cache and out, returns their addresses and the rows of q and out; None if one
#: is unlike the example.
Addresses = Callable[[Any, Any, Any, Any], tuple[int, int, int, int, int] | None]


def address_if_like(example: Any) -> Address | None:
    """Return a function that tells the address of tensors like `example`.

    Type, element type, strides, device and shape must be the same. None for tensors of frameworks
    other than PyTorch and CuPy. The function does not keep the example alive.

    Parameters
    ----------
    example : tensor on a GPU
        What others are compared with.
    """
    framework = framework_of(example)
    if framework not in ("torch", "cupy"):
        return None
    kind, dtype, shape = type(example), example.dtype, tuple(example.shape)
    if framework == "torch":
        strides, device = example.stride(), example.get_device()

        def of_torch(tensor: Any) -> int:
            if (
                type(tensor) is kind
                and tensor.shape == shape
                and tensor.stride() == strides
                and tensor.dtype is dtype
                and tensor.get_device() == device
            ):
                return int(tensor.data_ptr())
            return 0

        return of_torch
    strides, device = example.strides, example.data.device_id

    def of_cupy(array: Any) -> int:
        if type(array) is kind and array.shape == shape and array.strides == strides:
            memory = array.data
            if array.dtype == dtype and memory.device_id == device:
                return int(memory.ptr)
        return 0

    return of_cupy


def addresses_if_like(q: Any, k_cache: Any, v_cache: Any, out: Any) -> Addresses | None:
    """Return a function that tells the addresses of a run's tensors like these, and the rows.

    As `address_if_like`, but q and out may have another number of rows, the same for both. All four
    tensors are of one framework, element type and device.
    """
    kinds = type(q), type(k_cache), type(v_cache), type(out)
    frameworks = {framework_of(tensor) for tensor in (q, k_cache, v_cache, out)}
    if frameworks == {"torch"}:
        return _of_torch(q, k_cache, v_cache, out, kinds)
    if frameworks == {"cupy"}:
        return _of_cupy(q, k_cache, v_cache, out, kinds)
    return None


# One expression for all tensors: calling a function for each would take as long as comparing.


def _of_torch(q: Any, k: Any, v: Any, out: Any, kinds: tuple[Any, ...]) -> Addresses:
    are_like = _torch_guard(q, k, v, out)
    if are_like is None:
        return _of_torch_by_attributes(q, k, v, out, kinds)
    row, out_row = (tensor.shape[1] * tensor.shape[2] for tensor in (q, out))

    def addresses(q: Any, k: Any, v: Any, out: Any) -> tuple[int, int, int, int, int] | None:
        if not are_like(q, k, v, out):
            return None
        rows = q.numel() // row  # a third of the time of a shape
        if out.numel() != rows * out_row:
            return None
        return q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), rows

    return addresses


def _torch_guard(q: Any, k: Any, v: Any, out: Any) -> Callable[..., bool] | None:
    """Return what compares four tensors with these in one call; None where PyTorch has no such.

    Shapes are to be the same, but for the rows of q and out.
    """
    return torch_guard((q, k, v, out), (0, None, None, 0))


def torch_guard(
    examples: Sequence[Any], rows_axes: Sequence[int | None]
) -> Callable[..., bool] | None:
    """Return what compares as many tensors with these in one call; None where PyTorch has no such.

    It is what PyTorch's compiler guards its graphs with: type, element type, device, strides and
    shape. It also tells apart what does not matter here (whether gradients are asked for, inference
    mode), which costs the long way once. It keeps no tensor.

    Parameters
    ----------
    examples : sequence of tensors
        What others are compared with.
    rows_axes : sequence of int or None
        An axis of each that may have any extent.
    """
    try:
        import torch

        make = torch._C._dynamo.guards.TensorGuards
        sizes: list[list[int | None]] = [[*tensor.shape] for tensor in examples]
        strides: list[list[int | None]] = [[*tensor.stride()] for tensor in examples]
        for axis, its_sizes, its_strides in zip(rows_axes, sizes, strides, strict=True):
            for at, extent in enumerate(its_sizes):
                if at == axis:
                    its_sizes[at] = None
                elif extent == 1:
                    its_strides[at] = None  # of which nothing depends
        return make(  # type: ignore[no-any-return]
            *examples, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
        ).check
    except (ImportError, AttributeError, TypeError):
        return None


def _of_torch_by_attributes(q: Any, k: Any, v: Any, out: Any, kinds: tuple[Any, ...]) -> Addresses:
    q_kind, k_kind, v_kind, out_kind = kinds
    q_strides, k_strides, v_strides, out_strides = (t.stride() for t in (q, k, v, out))
    row, out_row, k_shape, v_shape = q.shape[1:], out.shape[1:], k.shape, v.shape
    dtype, device = q.dtype, q.get_device()

    def addresses(q: Any, k: Any, v: Any, out: Any) -> tuple[int, int, int, int, int] | None:
        if type(q) is not q_kind:
            return None
        shape = q.shape
        if (
            type(k) is k_kind
            and (type(v) is v_kind and type(out) is out_kind)
            and (shape[1:] == row and out.shape == (shape[0], *out_row))
            and (k.shape == k_shape and v.shape == v_shape)
            and (q.stride() == q_strides and out.stride() == out_strides)
            and (k.stride() == k_strides and v.stride() == v_strides)
            and (q.dtype is dtype and k.dtype is dtype and v.dtype is dtype)
            and (out.dtype is dtype and out.get_device() == device)
            and (q.get_device() == device == k.get_device() and v.get_device() == device)
        ):
            return q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), shape[0]
        return None

    return addresses


def _of_cupy(q: Any, k: Any, v: Any, out: Any, kinds: tuple[Any, ...]) -> Addresses:
    q_kind, k_kind, v_kind, out_kind = kinds
    q_strides, k_strides, v_strides, out_strides = (t.strides for t in (q, k, v, out))
    row, out_row, k_shape, v_shape = q.shape[1:], out.shape[1:], k.shape, v.shape
    dtype, device = q.dtype, q.data.device_id

    def addresses(q: Any, k: Any, v: Any, out: Any) -> tuple[int, int, int, int, int] | None:
        if type(q) is not q_kind:
            return None
        shape = q.shape
        if (
            type(k) is k_kind
            and (type(v) is v_kind and type(out) is out_kind)
            and (shape[1:] == row and out.shape == (shape[0], *out_row))
            and (k.shape == k_shape and v.shape == v_shape)
            and (q.strides == q_strides and out.strides == out_strides)
            and (k.strides == k_strides and v.strides == v_strides)
            and (q.dtype == dtype and k.dtype == dtype)
            and (v.dtype == dtype and out.dtype == dtype)
        ):
            at_q, at_k, at_v, at_out = q.data, k.data, v.data, out.data
            if (
                at_q.device_id == device == at_k.device_id
                and at_v.device_id == device == at_out.device_id
            ):
                return at_q.ptr, at_k.ptr, at_v.ptr, at_out.ptr, shape[0]
        return None

    return addresses
