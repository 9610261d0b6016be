"""C structs that host and device share, described once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

#: C type -> NumPy type; pointers travel as 64-bit integers.
_NUMPY_TYPES: dict[str, Any] = {
    "int": np.int32,
    "float": np.float32,
    "i64": np.int64,
    "TensorMap": "V128",
}


class Field(NamedTuple):
    """One member of a struct: its C type, name and meaning."""

    ctype: str
    name: str
    doc: str


def struct_dtype(fields: Sequence[Field], *, align: int = 1) -> np.dtype[np.void]:
    """Return the NumPy dtype with the memory layout of the C struct, padding included.

    `align` is the struct's own alignment in bytes, where it is more than its members need.
    """
    natural = np.dtype(
        [
            (field.name, np.uint64 if field.ctype.endswith("*") else _NUMPY_TYPES[field.ctype])
            for field in fields
        ],
        align=True,
    )
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
    """Return an array of one struct; every member must be given."""
    block = np.zeros(1, dtype)
    missing = set(dtype.names or ()) - values.keys()
    if missing:
        raise TypeError(f"fill_struct: missing {', '.join(sorted(missing))}")
    for name, value in values.items():
        block[name] = value
    return block


def render_struct(name: str, fields: Sequence[Field], *, align: int = 1) -> str:
    """Return the C++ definition, with assertions that size and offsets are those of NumPy."""
    dtype = struct_dtype(fields, align=align)
    members = "\n".join(f"  {field.ctype} {field.name};  // {field.doc}" for field in fields)
    specifier = f"alignas({align}) " if align > 1 else ""
    checks = [f'static_assert(sizeof({name}) == {dtype.itemsize}, "{name} differs from the host");']
    for field in fields:
        offset = dtype.fields[field.name][1]  # type: ignore[index]
        checks.append(
            f"static_assert(__INTADDR__(&(({name}*)0)->{field.name}) == {offset}, "
            f'"{name}.{field.name} differs from the host");'
        )
    return f"struct {specifier}{name} {{\n{members}\n}};\n" + "\n".join(checks)
