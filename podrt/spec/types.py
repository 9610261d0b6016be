"""Element types and head dimensions that podrt knows."""

from __future__ import annotations

from typing import Any, Literal

from podrt.errors import UnsupportedConfigError

DType = Literal["bfloat16", "float16"]

#: Bytes of an element.
ELEMENT_BYTES: dict[DType, int] = {"bfloat16": 2, "float16": 2}

#: Elements that a head may have: a step between, so that heads begin at multiples of 16 bytes.
HEAD_DIMS = tuple(range(32, 257, 8))
#: What an error says of them.
HEAD_DIMS_TEXT = "multiples of 8 from 32 to 256"


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
