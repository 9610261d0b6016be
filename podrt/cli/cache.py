"""``podrt cache``: look at, find and empty the folder of compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from podrt.cli._options import JsonOption
from podrt.cli._output import console, print_json, table
from podrt.jit import DiskCache, Entry, open_cache

app = typer.Typer(
    help="Compiled kernels on disk: list them, print their folder, delete them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command("list")
def list_entries(as_json: JsonOption = False) -> None:
    """List the compiled kernels in the cache, with size and age."""
    entries = _readable_cache().list()
    if as_json:
        print_json([_as_dict(entry) for entry in entries])
        return
    if not entries:
        console().print("The cache is empty.")
        return
    rows = table("variant", "KiB", "age", numbers=("KiB", "age"))
    for entry in entries:
        rows.add_row(entry.name, f"{entry.size_bytes / 1024:.0f}", format_age(entry.age_s))
    console().print(rows)
    total_mib = sum(entry.size_bytes for entry in entries) / 1024**2
    console().print(f"{len(entries)} kernels, {total_mib:.1f} MiB")


@app.command()
def clear() -> None:
    """Delete every compiled kernel of this version of podrt."""
    console().print(f"Deleted {_readable_cache().clear()} kernels.")


@app.command()
def path() -> None:
    """Print the cache folder (PODRT_CACHE_DIR overrides it)."""
    typer.echo(disk_cache().path)


def format_age(age_s: float) -> str:
    """Return an age in the largest unit that leaves at least 1, for example ``"3 h"``."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_s >= length_s:
            return f"{age_s / length_s:.0f} {unit}"
    return f"{age_s:.0f} s"


def disk_cache() -> DiskCache:
    """Return the cache on disk; raises ValueError if there is none."""
    cache = open_cache()
    if cache is None:
        raise ValueError("the disk cache is off: unset PODRT_DISABLE_CACHE, or set PODRT_CACHE_DIR")
    return cache


def _readable_cache() -> DiskCache:
    """Return the cache on disk; raises ValueError if there is none, or its folder can be none."""
    cache = disk_cache()
    if problem := problem_of(cache.path):
        raise ValueError(f"{problem}; set PODRT_CACHE_DIR to a folder")
    return cache


def problem_of(folder: Path) -> str:
    """Say why there can be no cache in `folder`, there already or not; empty if there can."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        where = "" if existing == folder else f"{folder}: "
        return f"{where}{existing} is no folder"
    if existing == folder and not os.access(folder, os.R_OK | os.X_OK):
        return f"{folder} cannot be read"
    return ""


def _as_dict(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "path": str(entry.path),
        "size_bytes": entry.size_bytes,
        "age_s": round(entry.age_s, 1),
    }
