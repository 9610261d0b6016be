"""Environment variables that steer podrt: typed, in one place, read when used."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack

T = TypeVar("T")

#: podrt's only logger. Silent until the application configures logging.
logger = logging.getLogger("podrt")
logger.addHandler(logging.NullHandler())

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")

_overrides: dict[str, Any] = {}


@dataclass(frozen=True)
class Knob(Generic[T]):
    """One environment variable. Call it for the value it has now.

    Attributes
    ----------
    name : str
        Name in `scope`, for example ``"cache_dir"``.
    type_name : str
        ``"path"``, ``"int"`` or ``"bool"``.
    default : Path, int, bool or None
        Value while the variable is unset or empty.
    meaning : str
        One line for people.
    convert : callable
        From a text or an override to the value; raises ValueError.
    """

    name: str
    type_name: str
    default: T
    meaning: str
    convert: Callable[[object], T]

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return f"PODRT_{self.name.upper()}"

    def __call__(self) -> T:
        """Return the value; raises ValueError naming the variable if it cannot be read."""
        value = _overrides[self.name] if self.name in _overrides else os.environ.get(self.variable)
        return self.default if value is None or value == "" else self.read(value)

    def read(self, value: object) -> T:
        """Convert `value`; raises ValueError naming the variable, the value and what is allowed."""
        try:
            return self.convert(value)
        except ValueError as error:
            raise ValueError(f"{self.variable}={value!r}: {error}") from None


def _to_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in _TRUE + _FALSE:
        raise ValueError(f"expected one of {', '.join(_TRUE + _FALSE)}")
    return word in _TRUE


def _to_path(value: object) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError("expected the path of a folder")
    try:
        return Path(value).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no home, or no working folder
        raise ValueError(f"expected the path of a folder ({error})") from None


def _to_bytes(value: object) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal():
        raise ValueError("expected a whole number of bytes, such as 1073741824; 0 for no bound")
    return int(text)


cache_dir: Knob[Path | None] = Knob(
    "cache_dir",
    "path",
    None,
    "folder of compiled kernels; unset: podrt's part of the user cache folder",
    _to_path,
)
cache_max_bytes = Knob(
    "cache_max_bytes",
    "int",
    1 << 30,
    "bytes that compiled kernels may take on disk; the least recently used go; 0: no bound",
    _to_bytes,
)
disable_cache = Knob(
    "disable_cache", "bool", False, "keep compiled kernels in memory only", _to_bool
)
disable_jit = Knob(
    "disable_jit", "bool", False, "raise MissingKernelError instead of compiling", _to_bool
)
jit_lineinfo = Knob(
    "jit_lineinfo", "bool", False, "compile with source lines for profilers", _to_bool
)
jit_verbose = Knob(
    "jit_verbose",
    "bool",
    False,
    'log every compiled kernel on logger "podrt", and the whole source of one that NVRTC refuses',
    _to_bool,
)

_KNOBS: dict[str, Knob[Any]] = {
    knob.name: knob
    for knob in (
        cache_dir,
        cache_max_bytes,
        disable_cache,
        disable_jit,
        jit_lineinfo,
        jit_verbose,
    )
}


def list_knobs() -> tuple[Knob[Any], ...]:
    """Return every knob: variable, type, default and meaning, as ``docs/limits.md`` has them."""
    return tuple(_KNOBS.values())


class Overrides(TypedDict, total=False):
    """Knobs that `scope` takes; None means unset."""

    cache_dir: str | Path | None
    cache_max_bytes: int | None
    disable_cache: bool | None
    disable_jit: bool | None
    jit_lineinfo: bool | None
    jit_verbose: bool | None


@contextmanager
def scope(**overrides: Unpack[Overrides]) -> Iterator[None]:
    """Override knobs inside a ``with`` block, for all threads of this process.

    Meant for tests: child processes do not see it, and scopes of several threads mix.

    Raises
    ------
    TypeError
        For a name that is no knob.
    ValueError
        For a value that the knob does not take.
    """
    unknown = sorted(set(overrides) - set(_KNOBS))
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no such knob; known are {', '.join(_KNOBS)}")
    for name, value in overrides.items():
        if value is not None:
            _KNOBS[name].read(value)
    before = dict(_overrides)
    _overrides.update(overrides)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)
