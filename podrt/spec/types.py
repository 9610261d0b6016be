"""Element types and head dimensions that podrt knows."""

from __future__ import annotations

from typing import Literal

DType = Literal["bfloat16", "float16"]

#: Bytes of an element.
ELEMENT_BYTES: dict[DType, int] = {"bfloat16": 2, "float16": 2}

HEAD_DIMS = (64, 128, 256)
