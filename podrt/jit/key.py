"""Everything that decides a cubin, and the digest of it that names it in the cache."""

from __future__ import annotations

import hashlib
import json

from podrt import knobs
from podrt._version import __version__
from podrt.jit.nvrtc import nvrtc_version
from podrt.jit.source import KernelSource

#: Raised when the meaning of a key or the layout of a cache entry changes.
SCHEMA = 1


def nvrtc_options(source: KernelSource) -> tuple[str, ...]:
    """Return the options that shape the code: all but the include path, which differs by machine.

    The architecture comes first. NVRTC's own cache would answer without ptxas' report, so it is
    turned off where there is one (NVRTC 13).
    ``--no-source-include`` keeps NVRTC from searching the working folder for headers, which the
    key would not notice.
    """
    lineinfo = ("-lineinfo",) if knobs.jit_lineinfo() else ()
    no_cache = ("--no-cache",) if nvrtc_version() >= (13, 0) else ()
    return (
        f"--gpu-architecture={source.arch}",
        "--std=c++17",
        "-default-device",
        "--no-source-include",
        "--ptxas-options=-v",
        *no_cache,
        *lineinfo,
        *source.options,
    )


def cache_key(source: KernelSource) -> str:
    """Return the SHA-256, in hexadecimal digits, of all that decides the compiled kernel."""
    parts = (
        SCHEMA,
        __version__,
        source.text,
        source.header_digest(),
        nvrtc_version(),
        source.arch,
        nvrtc_options(source),
        source.entry,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
