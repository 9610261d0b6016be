"""Tensors and plain sequences as NumPy arrays, for work that is done on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.gpu.device import load_cupy
from podrt.tensors.checks import require_dtype
from podrt.tensors.streams import resolve_stream
from podrt.tensors.view import TensorView, numpy_dtype, view


def host_array(values: object, name: str, dtype: str = "int32") -> npt.NDArray[Any]:
    """Return integers, wherever they are, as a NumPy array.

    Parameters
    ----------
    values : sequence of int, or tensor of `dtype`
        NumPy arrays and other tensors in host memory are not copied. A tensor on a GPU is copied on
        the current stream of its framework, and waited for.
    name : str
        Name of the caller's argument, for messages.
    dtype : str
        An integer type.

    Raises
    ------
    TypeError
        Elements of another type: int64 tensors are refused, because casting them is a copy that the
        caller would not see.
    ValueError
        A number that does not fit `dtype`, or nested sequences of different lengths.
    """
    if type(values) is np.ndarray and values.dtype == dtype and values.dtype.isnative:
        return values
    if hasattr(values, "__dlpack__") or hasattr(values, "__cuda_array_interface__"):
        stream = resolve_stream(None, values)
        tensor = view(values, name, stream)
        require_dtype(tensor, dtype)
        return to_numpy(tensor, stream)
    return _from_sequence(values, name, np.dtype(dtype))


def to_numpy(tensor: TensorView, stream: int = 0) -> npt.NDArray[Any]:
    """Return the tensor's elements as a NumPy array of the same shape, strides and dtype.

    Host memory is shared, and read-only where it was. Device memory is copied on the stream of
    handle `stream`, and waited for.

    Raises
    ------
    DeviceError
        The tensor lies on a GPU and there is no CuPy.
    """
    dtype = numpy_dtype(tensor.dtype)
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    strides_bytes = tuple(stride * dtype.itemsize for stride in tensor.strides)
    if tensor.device is None:
        return np.asarray(_HostMemory(tensor, dtype.itemsize, strides_bytes)).view(dtype)
    return _download(tensor, dtype, strides_bytes, stream)


class _HostMemory:
    """Hands memory to NumPy as raw bytes, since its array interface knows no bfloat16."""

    def __init__(self, tensor: TensorView, itemsize: int, strides_bytes: tuple[int, ...]) -> None:
        self.owner = tensor.owner
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.pointer, not tensor.writable),
            "shape": tensor.shape,
            "strides": strides_bytes,
            "typestr": f"|V{itemsize}",
        }


def _download(
    tensor: TensorView, dtype: np.dtype[Any], strides_bytes: tuple[int, ...], stream: int
) -> npt.NDArray[Any]:
    """Copy the bytes from the lowest to the highest element, gaps included, in one piece."""
    reaches = [
        (extent - 1) * stride for extent, stride in zip(tensor.shape, strides_bytes, strict=True)
    ]
    low = sum(reach for reach in reaches if reach < 0)
    high = sum(reach for reach in reaches if reach > 0) + dtype.itemsize
    host = np.empty(high - low, np.uint8)
    cuda = load_cupy().cuda
    with cuda.Device(tensor.device):
        cuda.runtime.memcpyAsync(
            host.ctypes.data,
            tensor.pointer + low,
            host.nbytes,
            cuda.runtime.memcpyDeviceToHost,
            stream,
        )
        cuda.runtime.streamSynchronize(stream)
    return np.ndarray(tensor.shape, dtype, host.data, offset=-low, strides=strides_bytes)


def _from_sequence(values: object, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: not a regular nest of sequences ({error})") from error
    if array.ndim == 0:
        raise TypeError(
            f"{name}: got {type(values).__name__}, expected a sequence of ints or a {dtype} tensor"
        )
    if array.size == 0:
        return np.empty(array.shape, dtype)
    _check_integers(array, name, dtype)
    return array.astype(dtype)


def _check_integers(array: npt.NDArray[Any], name: str, dtype: np.dtype[Any]) -> None:
    # Integers beyond 64 bits make an array of objects.
    odd = [] if array.dtype.kind in "iu" else [v for v in array.flat if type(v) is not int]
    if odd:
        raise TypeError(
            f"{name}: got elements of type {type(odd[0]).__name__}, expected ints; "
            f'cast it with numpy.asarray({name}).astype("{dtype}")'
        )
    limits = np.iinfo(dtype)
    outside = (array < limits.min) | (array > limits.max)
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"{name}{list(index)}={array[index]}: does not fit {dtype}, "
            f"which holds {limits.min} to {limits.max}"
        )
