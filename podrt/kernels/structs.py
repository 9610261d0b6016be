"""C structs that host and device share, described once."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

#: C type -> NumPy type; pointers travel as 64-bit integers.
_NUMPY_TYPES: dict[str, Any] = {
    "int": np.int32,
    "u32": np.uint32,
    "float": np.float32,
    "i64": np.int64,
    "TensorMap": "V128",
}

#: NumPy type -> code of the module `struct`; anything else, arrays too, is packed as bytes.
_PACK_CODES = {"i4": "i", "u4": "I", "f4": "f", "i8": "q", "u8": "Q"}


class Field(NamedTuple):
    """One member of a struct: its C type, name, meaning, and length if it is an array."""

    ctype: str
    name: str
    doc: str
    length: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type of the member."""
        one = np.uint64 if self.ctype.endswith("*") else _NUMPY_TYPES[self.ctype]
        return np.dtype(one if self.length is None else (one, (self.length,)))

    @property
    def declarator(self) -> str:
        """The name as C++ declares it."""
        return self.name if self.length is None else f"{self.name}[{self.length}]"


def struct_dtype(fields: Sequence[Field], *, align: int = 1) -> np.dtype[np.void]:
    """Return the NumPy dtype with the memory layout of the C struct, padding included.

    `align` is the struct's own alignment in bytes, where it is more than its members need.
    """
    natural = np.dtype([(field.name, field.dtype) for field in fields], align=True)
    members: Any = natural.fields
    return np.dtype(
        {
            "names": list(members),
            "formats": [member[0] for member in members.values()],
            "offsets": [member[1] for member in members.values()],
            "itemsize": -(-natural.itemsize // align) * align,
        }
    )


def fill_struct(dtype: np.dtype[np.void], **values: Any) -> npt.NDArray[np.void]:
    """Return a read-only array of one struct; every member must be given.

    Every launch fills one: `struct` does it in a fifth of the time that assigning to the members of
    a NumPy struct takes.

    Raises
    ------
    TypeError
        A member is missing, or a name is none.
    OverflowError
        A number does not fit its member.
    """
    names = dtype.names or ()
    if values.keys() != set(names):
        missing = ", ".join(name for name in names if name not in values)
        unknown = ", ".join(sorted(values.keys() - set(names)))
        raise TypeError(f"fill_struct: missing {missing or 'none'}, unknown {unknown or 'none'}")
    try:
        packed = packer(dtype).pack(*[values[name] for name in names])
    except struct.error as error:
        raise OverflowError(f"fill_struct: {error}") from error
    return np.frombuffer(packed, dtype)


@cache
def packer(dtype: np.dtype[np.void]) -> struct.Struct:
    """Return what packs the members of a struct, given in order, with its padding."""
    members: Any = dtype.fields
    codes, end = ["<"], 0
    for name in dtype.names or ():
        member, offset = members[name][:2]
        codes.append("x" * (offset - end))
        codes.append(_PACK_CODES.get(member.str[1:]) or f"{member.itemsize}s")
        end = offset + member.itemsize
    return struct.Struct("".join(codes) + "x" * (dtype.itemsize - end))


def render_struct(name: str, fields: Sequence[Field], *, align: int = 1) -> str:
    """Return the C++ definition, with assertions that size and offsets are those of NumPy."""
    dtype = struct_dtype(fields, align=align)
    members = "\n".join(f"  {field.ctype} {field.declarator};  // {field.doc}" for field in fields)
    specifier = f"alignas({align}) " if align > 1 else ""
    checks = [f'static_assert(sizeof({name}) == {dtype.itemsize}, "{name} differs from the host");']
    for field in fields:
        offset = dtype.fields[field.name][1]  # type: ignore[index]
        checks.append(
            f"static_assert(__INTADDR__(&(({name}*)0)->{field.name}) == {offset}, "
            f'"{name}.{field.name} differs from the host");'
        )
    return f"struct {specifier}{name} {{\n{members}\n}};\n" + "\n".join(checks)
