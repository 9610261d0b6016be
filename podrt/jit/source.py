"""What the compiler is given: one rendered kernel and the headers that it includes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from podrt.jit.render import Headers, collect_headers, render

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_ENTRY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ARCH = re.compile(r"sm_\d+[af]?")


class Config(Protocol):
    """One variant of a kernel, which has its name."""

    @property
    def name(self) -> str:
        """Of its folder in the cache, and of its ``extern "C"`` function."""

    @property
    def arch(self) -> str:
        """NVRTC target."""


@dataclass(frozen=True)
class KernelSource:
    """One kernel, ready to compile.

    Attributes
    ----------
    name : str
        Readable, file-safe name of the variant; the first part of its folder in the cache.
    arch : str
        NVRTC target, for example ``"sm_90a"``.
    text : str
        CUDA C++; ``#include "..."`` is relative to `templates_dir`.
    entry : str
        The ``extern "C"`` kernel.
    options : tuple of str
        NVRTC options besides podrt's own.
    headers : tuple of (str, str)
        Name and text of every header that `text` includes with quotes, directly or not. They are
        read when the object is made; later edits of the files do not reach it.

    Raises
    ------
    ValueError
        If `name`, `arch` or `entry` has a form that cannot be used.
    FileNotFoundError
        If an included header is missing.
    """

    name: str
    arch: str
    text: str = field(repr=False)
    entry: str
    options: tuple[str, ...] = ()
    headers: Headers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, pattern, expected in (
            ("name", _NAME, "up to 200 letters, digits and _ . -, as it names a folder"),
            ("arch", _ARCH, "an NVRTC target such as 'sm_90a'"),
            ("entry", _ENTRY, 'the name of an extern "C" function'),
        ):
            value = getattr(self, name)
            if not pattern.fullmatch(value):
                raise ValueError(f"{name}={value!r}: expected {expected}")
        object.__setattr__(self, "headers", collect_headers(self.text))

    @classmethod
    def rendered(cls, template: str, config: Config, **values: Any) -> KernelSource:
        """Return a template, a path as of `render`, with its values, of which one is `config`."""
        text = render(template, {"config": config, **values})
        return cls(name=config.name, arch=config.arch, text=text, entry=config.name)
