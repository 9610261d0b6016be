"""Tensor maps: what the copy engine must know of a tensor (CUDA driver, cuTensorMapEncodeTiled)."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from podrt.errors import DeviceError
from podrt.spec.types import ELEMENT_BYTES, DType

TENSOR_MAP_BYTES = 128
_ALIGNMENT = 128
_DATA_TYPE = {"float16": 6, "bfloat16": 9}  # CU_TENSOR_MAP_DATA_TYPE_*
_INTERLEAVE_NONE, _SWIZZLE_128B, _L2_PROMOTION_NONE, _ZEROS_OUT_OF_BOUNDS = 0, 3, 0, 0


class MapShape(NamedTuple):
    """A tensor and the box of a copy, innermost axis first, as `tensor_map` takes them."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


def tensor_map(
    pointer: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    dtype: DType,
) -> bytes:
    """Encode a tensor and the box that one copy takes from it, in the 128-byte swizzle.

    Parameters
    ----------
    pointer : int
        Address of the first element, a multiple of 16.
    shape, strides : tuple of int
        Extents and steps in elements, innermost axis first; the innermost step is 1, the others are
        multiples of 8.
    box : tuple of int
        Elements of a copy along each axis; innermost 64, others at most 256.
    dtype : {"bfloat16", "float16"}
        Element type.

    Returns
    -------
    bytes
        The map, 128 bytes to be passed to a kernel by value.

    Raises
    ------
    DeviceError
        The driver refuses the map, or there is none.
    """
    return TensorMapEncoder(shape, strides, box, dtype).encode(pointer)


class TensorMapEncoder:
    """Encodes maps of tensors that differ in their address and outermost extent alone.

    The arguments of the driver's function are made once; making them is most of the time of a map.

    Parameters
    ----------
    shape, strides, box, dtype
        As of `tensor_map`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        box: tuple[int, ...],
        dtype: DType,
    ) -> None:
        self._what = f"strides {strides} and box {box}, innermost axis first"
        rank = len(shape)
        self._memory = np.zeros(TENSOR_MAP_BYTES + _ALIGNMENT, np.uint8)
        self._address = self._memory.ctypes.data + -self._memory.ctypes.data % _ALIGNMENT
        self._shape = (ctypes.c_uint64 * rank)(*shape)
        strides_bytes = [stride * ELEMENT_BYTES[dtype] for stride in strides[1:]]
        self._before = (
            ctypes.c_void_p(self._address),
            ctypes.c_int(_DATA_TYPE[dtype]),
            ctypes.c_uint32(rank),
        )
        self._after = (
            self._shape,
            (ctypes.c_uint64 * (rank - 1))(*strides_bytes),
            (ctypes.c_uint32 * rank)(*box),
            (ctypes.c_uint32 * rank)(*([1] * rank)),
            ctypes.c_int(_INTERLEAVE_NONE),
            ctypes.c_int(_SWIZZLE_128B),
            ctypes.c_int(_L2_PROMOTION_NONE),
            ctypes.c_int(_ZEROS_OUT_OF_BOUNDS),
        )

    def encode(self, pointer: int, outermost: int | None = None) -> bytes:
        """Return the map of the tensor at an address, with another outermost extent if given.

        Raises
        ------
        DeviceError
            The driver refuses the map, or there is none.
        """
        if outermost is not None:
            self._shape[-1] = outermost
        status = _driver().cuTensorMapEncodeTiled(
            *self._before, ctypes.c_void_p(pointer), *self._after
        )
        if status:
            raise DeviceError(
                f"the driver refuses a tensor map (CUresult {status}) of shape "
                f"{tuple(self._shape)}, {self._what}"
            )
        return ctypes.string_at(self._address, TENSOR_MAP_BYTES)


@cache
def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DeviceError(f"no NVIDIA driver: {error}") from error
