"""Which array library an object comes from, told by its type so that no library is imported."""

from __future__ import annotations

from typing import Literal

Framework = Literal["numpy", "cupy", "torch", "jax", "other"]

_ARRAY_TYPES: dict[tuple[str, str], Framework] = {
    ("numpy", "ndarray"): "numpy",
    ("cupy", "ndarray"): "cupy",
    ("torch", "Tensor"): "torch",
    ("jax", "ArrayImpl"): "jax",
    ("jaxlib", "ArrayImpl"): "jax",
}
_seen: dict[type, Framework] = {}


def framework_of(tensor: object) -> Framework:
    """Return the library that `tensor`, or a base class of its type, belongs to."""
    kind = type(tensor)
    if kind not in _seen:
        _seen[kind] = _search(kind)
    return _seen[kind]


def _search(kind: type) -> Framework:
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        if (package, base.__name__) in _ARRAY_TYPES:
            return _ARRAY_TYPES[package, base.__name__]
    return "other"
