"""C structs that host and device share, described once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: C type -> NumPy type; pointers travel as 64-bit integers.
_NUMPY_TYPES = {"int": np.int32, "float": np.float32, "i64": np.int64}


class Field(NamedTuple):
    """One member of a struct: its C type, name and meaning."""

    ctype: str
    name: str
    doc: str


def struct_dtype(fields: Sequence[Field]) -> np.dtype[np.void]:
    """Return the NumPy dtype with the memory layout of the C struct, padding included."""
    return np.dtype(
        [
            (field.name, np.uint64 if field.ctype.endswith("*") else _NUMPY_TYPES[field.ctype])
            for field in fields
        ],
        align=True,
    )


def render_struct(name: str, fields: Sequence[Field], *, align: int | None = None) -> str:
    """Return the C++ definition, with assertions that size and offsets are those of NumPy."""
    dtype = struct_dtype(fields)
    members = "\n".join(f"  {field.ctype} {field.name};  // {field.doc}" for field in fields)
    specifier = f"alignas({align}) " if align else ""
    checks = [f'static_assert(sizeof({name}) == {dtype.itemsize}, "{name} differs from the host");']
    for field in fields:
        offset = dtype.fields[field.name][1]  # type: ignore[index]
        checks.append(
            f"static_assert(__INTADDR__(&(({name}*)0)->{field.name}) == {offset}, "
            f'"{name}.{field.name} differs from the host");'
        )
    return f"struct {specifier}{name} {{\n{members}\n}};\n" + "\n".join(checks)
