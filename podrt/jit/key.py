"""Everything that decides a cubin, and the digest of it that names it in the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from podrt import knobs
from podrt._version import __version__
from podrt.jit.nvrtc import nvrtc_release, nvrtc_version
from podrt.jit.source import KernelSource

#: Raised when the meaning of a key or the layout of a cache entry changes.
SCHEMA = 2
#: Options besides the architecture that decide what the code means.
CODE_OPTIONS = ("--std=c++17", "-default-device")


@dataclass(frozen=True)
class Recipe:
    """Exactly what NVRTC is given, and which NVRTC it is; read once, then compiled and keyed.

    Attributes
    ----------
    source : KernelSource
        Text and headers.
    options : tuple of str
        All options, the architecture first.
    release : str
        What `nvrtc_release` says.
    """

    source: KernelSource
    options: tuple[str, ...]
    release: str

    @cached_property
    def key(self) -> str:
        """SHA-256, in hexadecimal digits, of all that decides the compiled kernel."""
        source = self.source
        parts = (
            SCHEMA,
            __version__,
            source.name,
            source.text,
            source.headers,
            source.entry,
            self.options,
            self.release,
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def recipe_of(source: KernelSource) -> Recipe:
    """Return how `source` is compiled now, by the knobs and the NVRTC of this process.

    Raises
    ------
    DeviceError
        If NVRTC is not installed, or not whole.
    """
    return Recipe(source, _options(source), nvrtc_release())


def cache_key(source: KernelSource) -> str:
    """Return the key of `source` as it is compiled now; raises as `recipe_of`."""
    return recipe_of(source).key


def _options(source: KernelSource) -> tuple[str, ...]:
    """Return the options, the architecture first.

    NVRTC's own cache would answer without ptxas' report, so it is turned off where there is one
    (NVRTC 13). ``--no-source-include`` keeps NVRTC from searching the working folder for headers,
    which the key would not notice.
    """
    lineinfo = ("-lineinfo",) if knobs.jit_lineinfo() else ()
    no_cache = ("--no-cache",) if nvrtc_version() >= (13, 0) else ()
    return (
        f"--gpu-architecture={source.arch}",
        *CODE_OPTIONS,
        "--no-source-include",
        "--ptxas-options=-v",
        *no_cache,
        *lineinfo,
        *source.options,
    )
