"""The arguments of a launch in memory that stays where it is; a launch changes a few of them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
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
        How many of the first ones `change` writes; tensor maps come before the others.
    values
        The others, by name.

    Attributes
    ----------
    address : int
        Of an array of one pointer, to the struct: what the driver takes for a kernel's parameters.
    view : memoryview
        The struct's bytes.
    change : function
        ``change(*values)`` writes the first members; tensor maps as one run of bytes.
    """

    def __init__(self, fields: Sequence[Field], changing: int, **values: Any) -> None:
        dtype = struct_dtype(fields, align=_ALIGN)
        memory = np.zeros(dtype.itemsize + _ALIGN, np.uint8)
        offset = -memory.ctypes.data % _ALIGN
        self._bytes = memory[offset : offset + dtype.itemsize]
        self.view = memoryview(self._bytes.data)
        first = struct_dtype(fields[:changing])
        nothing = [b"" if field.ctype == "TensorMap" else 0 for field in fields[:changing]]
        rest = [values.pop(field.name) for field in fields[changing:]]
        if values:
            raise TypeError(f"arguments that the kernel does not have: {', '.join(values)}")
        packer(dtype).pack_into(self.view, 0, *nothing, *rest)
        self.change: Callable[..., None] = partial(_merged_packer(first).pack_into, self.view, 0)
        self._pointers = np.array([self._bytes.ctypes.data], np.uint64)
        self.address: int = self._pointers.ctypes.data

    def __bytes__(self) -> bytes:
        return self._bytes.tobytes()


def _merged_packer(dtype: np.dtype[np.void]) -> struct.Struct:
    """Return what packs members of which the first are tensor maps, given as one."""
    members: Any = dtype.fields
    maps = [member for member, *_ in members.values() if member.kind == "V"]
    nbytes = sum(member.itemsize for member in maps)
    others = len(members) - len(maps)
    if dtype.itemsize != nbytes + 8 * others:
        raise TypeError(f"{dtype}: expected tensor maps, then pointers")
    return struct.Struct(f"<{nbytes}s{others}Q" if nbytes else f"<{others}Q")
