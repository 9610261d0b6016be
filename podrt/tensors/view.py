"""Any framework's tensor as pointer, shape, strides, dtype and device; nothing is ever copied.

NumPy, CuPy and PyTorch tensors are read through their attributes, which costs about a microsecond
and works where the exchange protocols do not (bfloat16 in NumPy and CuPy, no driver for NumPy).
Everything else goes through DLPack, or else the CUDA Array Interface, as read by cuda.core.

Stream order: PyTorch's and CuPy's tensors are taken as they are, so work that still has to produce
them must be ordered before the launch stream, as it is for that framework's own kernels. The
exchange protocols are told the launch stream, and make it wait for the producer's pending work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.errors import DeviceError
from podrt.tensors.frameworks import Framework, framework_of

_DLPACK_CPU = 1
_NO_STREAM = -1
_LEGACY_STREAM = 1


@dataclass(frozen=True, slots=True)
class TensorView:
    """Where a tensor lies and how it is laid out.

    Attributes
    ----------
    name : str
        Name of the caller's argument, for messages.
    pointer : int
        Address of the first element.
    shape, strides : tuple of int
        Extent of each dimension, and its step in elements.
    dtype : str
        Element type, for example ``"bfloat16"`` or ``"int32"``.
    device : int or None
        CUDA device number; None is host memory.
    writable : bool
        Whether the memory may be written.
    framework : {"numpy", "cupy", "torch", "jax", "other"}
        Where the tensor comes from.
    owner : object
        Keeps the memory alive: the tensor itself, or what it exported.
    """

    name: str
    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int | None
    writable: bool
    framework: Framework
    owner: Any = field(repr=False)  # printing a tensor on a GPU would wait for it

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return numpy_dtype(self.dtype).itemsize

    @property
    def place(self) -> str:
        """The device in words."""
        return "host memory" if self.device is None else f"cuda:{self.device}"


def view(tensor: object, name: str, stream: int = 0) -> TensorView:
    """Describe `tensor` without copying it.

    Parameters
    ----------
    tensor : array
        NumPy, CuPy, PyTorch or JAX array, or anything with ``__dlpack__`` or
        ``__cuda_array_interface__``.
    name : str
        Name of the caller's argument, for messages.
    stream : int
        Handle of the stream that is going to use the tensor (0 is the legacy default stream). It is
        made to wait for the producer's pending work by producers that only the exchange protocols
        reach; JAX's in particular, whose stream nobody else can order against.

    Raises
    ------
    TypeError
        `tensor` is not a tensor, or its producer cannot export it.
    ValueError
        Its strides are no whole number of elements, or it lies on a device that is no CUDA GPU.
    DeviceError
        Exchanging it needs cuda.core or a driver that is not there.
    """
    framework = framework_of(tensor)
    reader = _READERS.get(framework)
    if reader is not None:
        return reader(tensor, name)
    return _view_exported(tensor, name, stream, framework)


@lru_cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype called `name`, ml_dtypes' (``"bfloat16"``) included."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype


def _view_torch(tensor: Any, name: str) -> TensorView:
    if tensor.is_cuda:
        device = tensor.get_device()
    elif tensor.is_cpu:
        device = None
    else:
        raise ValueError(f"{name}: lies on {tensor.device}, expected a CUDA GPU or the CPU")
    return TensorView(
        name,
        tensor.data_ptr(),
        tuple(tensor.shape),
        tensor.stride(),
        _torch_dtype_name(tensor.dtype),
        device,
        True,
        "torch",
        tensor,
    )


def _view_cupy(array: Any, name: str) -> TensorView:
    memory = array.data
    return TensorView(
        name,
        memory.ptr,
        array.shape,
        _in_elements(array.strides, array.dtype.itemsize, name),
        _dtype_name(array.dtype),
        memory.device_id,
        True,
        "cupy",
        array,
    )


def _view_numpy(array: npt.NDArray[Any], name: str) -> TensorView:
    return TensorView(
        name,
        array.ctypes.data,
        array.shape,
        _in_elements(array.strides, array.dtype.itemsize, name),
        _dtype_name(array.dtype),
        None,
        array.flags.writeable,
        "numpy",
        array,
    )


_READERS: dict[Framework, Callable[[Any, str], TensorView]] = {
    "torch": _view_torch,
    "cupy": _view_cupy,
    "numpy": _view_numpy,
}


def _view_exported(tensor: Any, name: str, stream: int, framework: Framework) -> TensorView:
    exported = _export(tensor, name, stream)
    shape = tuple(exported.shape)
    strides = exported.strides
    return TensorView(
        name,
        exported.ptr,
        shape,
        _row_major(shape) if strides is None else tuple(strides),
        _dtype_name(exported.dtype),
        exported.device_id if exported.is_device_accessible else None,
        # JAX arrays are immutable, which the DLPack version that JAX speaks cannot say.
        framework != "jax" and not exported.readonly,
        framework,
        exported,
    )


def _export(tensor: Any, name: str, stream: int) -> Any:
    """Return cuda.core's view of `tensor`, its dtype already read."""
    if not (hasattr(tensor, "__dlpack__") or hasattr(tensor, "__cuda_array_interface__")):
        raise TypeError(
            f"{name}: got {type(tensor).__name__}, expected a NumPy, CuPy, PyTorch or JAX array, "
            "or an object with __dlpack__ or __cuda_array_interface__"
        )
    if any(
        base.__name__ == "Tracer" and base.__module__.startswith("jax.")
        for base in type(tensor).__mro__
    ):
        raise TypeError(
            f"{name}: is traced by JAX and has no memory yet; call podrt outside of jax.jit and "
            "JAX's other transformations"
        )
    try:
        from cuda.core.utils import StridedMemoryView
        from cuda.pathfinder import DynamicLibNotFoundError
    except ImportError as error:
        raise DeviceError(
            f"{name}: reading a {type(tensor).__name__} needs cuda.core ({error}): "
            "pip install 'podrt[cuda13]' or 'podrt[cuda12]'"
        ) from error
    try:
        exported = StridedMemoryView.from_any_interface(
            tensor, stream_ptr=_consumer_stream(tensor, stream)
        )
        _ = exported.dtype  # found out on first use, and not for every element type
    except DynamicLibNotFoundError as error:
        raise DeviceError(f"{name}: no NVIDIA driver is installed ({error})") from error
    except (BufferError, NotImplementedError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: this {type(tensor).__name__} cannot be shared without a copy ({error})"
        ) from error
    return exported


def _consumer_stream(tensor: Any, stream: int) -> int:
    """Return `stream` as the exchange protocols spell it."""
    if hasattr(tensor, "__dlpack_device__") and tensor.__dlpack_device__()[0] == _DLPACK_CPU:
        return _NO_STREAM
    # Both protocols forbid 0, which might mean the legacy or the per-thread default stream.
    return stream or _LEGACY_STREAM


@lru_cache
def _torch_dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


@lru_cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    # A byte order that no GPU reads must not pass for the native type.
    return dtype.name if dtype.isnative else f"byte-swapped {dtype.name}"


def _in_elements(strides_bytes: tuple[int, ...], itemsize: int, name: str) -> tuple[int, ...]:
    if any(stride % itemsize for stride in strides_bytes):
        raise ValueError(
            f"{name}: strides of {strides_bytes} bytes, expected multiples of the {itemsize} bytes "
            "of an element; pass a contiguous copy"
        )
    return tuple(stride // itemsize for stride in strides_bytes)


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.append(strides[-1] * extent)
    return tuple(reversed(strides)) if shape else ()
