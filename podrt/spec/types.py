"""Element types and head dimensions that podrt knows."""

from __future__ import annotations

from typing import Any, Literal

from podrt.errors import UnsupportedConfigError

DType = Literal["bfloat16", "float16"]

#: Bytes of an element.
ELEMENT_BYTES: dict[DType, int] = {"bfloat16": 2, "float16": 2}

HEAD_DIMS = (64, 128, 256)


def dtype_name(dtype: Any, allowed: tuple[str, ...]) -> str:
    """Return the name of a dtype: a name, or a framework's such as torch.bfloat16 or numpy.float16.

    Raises
    ------
    UnsupportedConfigError
        It is not one of those allowed.
    """
    text: str = getattr(dtype, "__name__", None) or str(dtype)
    name = text.rpartition(".")[2]
    if name not in allowed:
        raise UnsupportedConfigError(f"dtype={dtype!r}: allowed are {allowed}")
    return name
