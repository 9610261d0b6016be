"""One compiled kernel as a folder of files: written whole, verified when read.

The folder has all that NVRTC was given, so that the kernel can be compiled again from it alone:
``kernel.cu``, ``headers.json`` with the headers by name, and the options in ``meta.json``; beside
them ``kernel.cubin``.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from podrt.jit.artifact import Build, Resources
from podrt.jit.files import fsync_folder, write_durably
from podrt.jit.key import SCHEMA, Recipe
from podrt.jit.source import KernelSource

FILES = _SOURCE, _HEADERS, _CUBIN, _META = (
    "kernel.cu",
    "headers.json",
    "kernel.cubin",
    "meta.json",
)


class BadEntryError(Exception):
    """An entry that is not what its name promises; says why."""


def write_entry(folder: Path, build: Build) -> None:
    """Write the files of `build` into an empty folder; raises OSError."""
    meta = {
        "schema": SCHEMA,
        "name": build.source.name,
        "arch": build.source.arch,
        "entry": build.source.entry,
        "key": build.key,
        "options": build.recipe.options,
        "nvrtc_release": build.recipe.release,
        "resources": asdict(build.resources),
        "log": build.log,
        "compile_time_s": build.compile_time_s,
        "cubin_sha256": hashlib.sha256(build.cubin).hexdigest(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    contents = (*_source_files(build.source), build.cubin, json.dumps(meta, indent=2).encode())
    for name, content in zip(FILES, contents, strict=True):
        write_durably(folder / name, content)
    fsync_folder(folder)


def read_entry(folder: Path, recipe: Recipe) -> Build:
    """Read and verify one entry; raises BadEntryError if anything is wrong with it."""
    try:
        meta = json.loads((folder / _META).read_bytes())
        cubin = (folder / _CUBIN).read_bytes()
        if meta["schema"] != SCHEMA or meta["key"] != recipe.key:
            raise BadEntryError("it belongs to another kernel")
        for name, content in zip(FILES, _source_files(recipe.source), strict=False):
            if (folder / name).read_bytes() != content:
                raise BadEntryError(f"{name} is damaged")
        if hashlib.sha256(cubin).hexdigest() != meta["cubin_sha256"]:
            raise BadEntryError(f"{_CUBIN} is damaged")
        return _build_from(meta, cubin, recipe)
    except OSError as error:
        raise BadEntryError(str(error)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise BadEntryError(f"{_META} is damaged ({error!r})") from error


def touch_entry(folder: Path) -> None:
    """Note that an entry was used now; one that is read-only stays as it is."""
    with suppress(OSError):
        os.utime(folder / _META)


def last_use_s(folder: Path) -> float:
    """Return when an entry was written or last used, as a Unix time; raises FileNotFoundError.

    The folder's own time stays that of its making, as its files change no more.
    """
    return (folder / _META).stat().st_mtime


def _source_files(source: KernelSource) -> tuple[bytes, bytes]:
    """Return the contents of `_SOURCE` and `_HEADERS`."""
    return source.text.encode(), json.dumps(dict(source.headers), indent=1).encode()


def _build_from(meta: Any, cubin: bytes, recipe: Recipe) -> Build:
    resources = dict(meta["resources"])
    resources["warnings"] = tuple(resources["warnings"])
    return Build(
        recipe=recipe,
        cubin=cubin,
        log=meta["log"],
        resources=Resources(**resources),
        compile_time_s=float(meta["compile_time_s"]),
        origin="disk",
    )
