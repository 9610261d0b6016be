"""The arguments of a launch in memory that stays where it is; a launch changes a few of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from podrt.kernels.structs import Field, packer, struct_dtype

_ALIGN = 64


class ArgumentBlock:
    """One struct, the only parameter of a kernel, whose first members change from run to run.

    Parameters
    ----------
    fields : sequence of Field
        Members in memory order.
    changing : int
        How many of the first ones `change` writes.
    values
        The others, by name.

    Attributes
    ----------
    address : int
        Of an array of one pointer, to the struct: what the driver takes for a kernel's parameters.
    """

    def __init__(self, fields: Sequence[Field], changing: int, **values: Any) -> None:
        dtype = struct_dtype(fields, align=_ALIGN)
        memory = np.zeros(dtype.itemsize + _ALIGN, np.uint8)
        offset = -memory.ctypes.data % _ALIGN
        self._bytes = memory[offset : offset + dtype.itemsize]
        self._view = memoryview(self._bytes.data)
        first = struct_dtype(fields[:changing])
        nothing = [b"" if field.ctype == "TensorMap" else 0 for field in fields[:changing]]
        rest = [values.pop(field.name) for field in fields[changing:]]
        if values:
            raise TypeError(f"arguments that the kernel does not have: {', '.join(values)}")
        packer(dtype).pack_into(self._view, 0, *nothing, *rest)
        self._change = packer(first).pack_into
        self._pointers = np.array([self._bytes.ctypes.data], np.uint64)
        self.address: int = self._pointers.ctypes.data

    def change(self, *values: Any) -> None:
        """Write the first members."""
        self._change(self._view, 0, *values)

    def __bytes__(self) -> bytes:
        return self._bytes.tobytes()
