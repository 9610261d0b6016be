"""Compiled kernels on disk, safe for many processes at once.

Each variant has a folder ``<name>.<first 16 digits of its key>`` that a person can read:
``kernel.cu``, ``kernel.cubin`` and ``meta.json``. A folder is written aside and renamed into place,
so that it is there as a whole or not at all; no locks, which network file systems do not honour.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from podrt import knobs
from podrt._version import __version__
from podrt.jit.artifact import Build, Resources
from podrt.jit.key import SCHEMA, nvrtc_options
from podrt.jit.source import KernelSource

_SOURCE, _CUBIN, _META = _FILES = ("kernel.cu", "kernel.cubin", "meta.json")
_KEY_DIGITS = 16
_ENTRY_NAME = re.compile(rf"(?P<name>.+)\.(?P<key>[0-9a-f]{{{_KEY_DIGITS}}})")
_TEMP_PREFIX = ".tmp-"
_STALE_TEMP_S = 3600.0

_warned: set[str] = set()


class _BadEntryError(Exception):
    """A cache entry that is not what its name promises; says why."""


@dataclass(frozen=True)
class Entry:
    """One variant in the cache.

    Attributes
    ----------
    name, key : str
        Name of the variant, and the first 16 digits of its key.
    path : Path
        Its folder.
    size_bytes : int
        Bytes of its files.
    age_s : float
        Seconds since it was written.
    """

    name: str
    key: str
    path: Path
    size_bytes: int
    age_s: float


class DiskCache:
    """The compiled kernels in one folder, which is made when the first of them is stored.

    Parameters
    ----------
    root : Path
        The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def path(self) -> Path:
        """The folder."""
        return self._root

    def load(self, source: KernelSource, key: str) -> Build | None:
        """Return the build stored under `key`, or None.

        An entry that is damaged or belongs to something else counts as missing, with one warning.
        """
        entry = self._entry_path(source, key)
        try:
            return _read_entry(entry, source, key)
        except _BadEntryError as error:
            # Absent, or taken away by another process while it was being read.
            if os.path.lexists(entry):
                warnings.warn(
                    f"podrt: the cache entry {entry} is ignored: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return None

    def store(self, build: Build) -> None:
        """Store `build`, in place of a bad entry if there is one.

        A folder that cannot be written is no error: podrt warns once and goes on in memory.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._sweep_stale_temps()
            with self._temp_folder() as temp:
                _write_entry(temp, build)
                self._publish(temp, build)
        except OSError as error:
            _warn_once(f"{self._root} cannot be written ({error.strerror}); set PODRT_CACHE_DIR")

    def list(self) -> tuple[Entry, ...]:
        """Return the entries, by name."""
        now = time.time()
        entries = []
        for path, match in self._entry_folders():
            with suppress(FileNotFoundError):  # another process may have just removed it
                size_bytes = sum(file.stat().st_size for file in path.iterdir())
                age_s = max(0.0, now - path.stat().st_mtime)
                entries.append(Entry(match["name"], match["key"], path, size_bytes, age_s))
        return tuple(entries)

    def clear(self) -> int:
        """Remove every entry and return how many there were; other files in the folder stay."""
        self._sweep_stale_temps()
        folders = [path for path, _ in self._entry_folders()]
        for folder in folders:
            self._discard(folder)
        return len(folders)

    def _entry_path(self, source: KernelSource, key: str) -> Path:
        return self._root / f"{source.name}.{key[:_KEY_DIGITS]}"

    def _entry_folders(self) -> Iterator[tuple[Path, re.Match[str]]]:
        paths = sorted(self._root.iterdir()) if self._root.is_dir() else []
        for path in paths:
            match = _ENTRY_NAME.fullmatch(path.name)
            if match and _holds_only_our_files(path):
                yield path, match

    @contextmanager
    def _temp_folder(self) -> Iterator[Path]:
        temp = self._root / f"{_TEMP_PREFIX}{uuid4().hex}"
        temp.mkdir()
        try:
            yield temp
        finally:
            _remove(temp)

    def _publish(self, temp: Path, build: Build) -> None:
        entry = self._entry_path(build.source, build.key)
        if not _rename(temp, entry):
            try:
                _read_entry(entry, build.source, build.key)
                return  # another process was first, and its entry is good
            except _BadEntryError:
                self._discard(entry)
            # Losing once more means that another process has just replaced the bad entry.
            _rename(temp, entry)
        _fsync(self._root)

    def _discard(self, path: Path) -> None:
        """Remove `path` so that other processes see it as a whole or not at all."""
        trash = self._root / f"{_TEMP_PREFIX}{uuid4().hex}"
        with suppress(FileNotFoundError):
            path.rename(trash)
            _remove(trash)

    def _sweep_stale_temps(self) -> None:
        """Remove what processes that died in the middle of writing left behind."""
        oldest = time.time() - _STALE_TEMP_S
        for temp in self._root.glob(f"{_TEMP_PREFIX}*"):
            with suppress(FileNotFoundError):
                if temp.lstat().st_mtime < oldest:
                    _remove(temp)


def open_cache() -> DiskCache | None:
    """Return the cache that the knobs choose, or None if kernels are to stay in memory."""
    if knobs.disable_cache():
        return None
    root = knobs.cache_dir() or _default_root()
    if not root.is_absolute():
        _warn_once("this user has no home folder; set PODRT_CACHE_DIR")
        return None
    return DiskCache(root)


def _default_root() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("podrt", appauthor=False) / __version__


def _write_entry(folder: Path, build: Build) -> None:
    text = build.source.text.encode()
    meta = {
        "schema": SCHEMA,
        "name": build.source.name,
        "arch": build.source.arch,
        "entry": build.source.entry,
        "key": build.key,
        "options": nvrtc_options(build.source),
        "nvrtc_version": build.nvrtc_version,
        "resources": asdict(build.resources),
        "log": build.log,
        "compile_time_s": build.compile_time_s,
        "source_sha256": hashlib.sha256(text).hexdigest(),
        "cubin_sha256": hashlib.sha256(build.cubin).hexdigest(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    contents = (text, build.cubin, json.dumps(meta, indent=2).encode())
    for name, content in zip(_FILES, contents, strict=True):
        with open(folder / name, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _fsync(folder)


def _read_entry(folder: Path, source: KernelSource, key: str) -> Build:
    """Read and verify one entry; raises _BadEntryError if anything is wrong with it."""
    try:
        meta = json.loads((folder / _META).read_bytes())
        text = (folder / _SOURCE).read_bytes()
        cubin = (folder / _CUBIN).read_bytes()
        _verify(meta, text, cubin, source, key)
        return _build_from(meta, cubin, source, key)
    except OSError as error:
        raise _BadEntryError(str(error)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise _BadEntryError(f"{_META} is damaged ({error!r})") from error


def _verify(meta: Any, text: bytes, cubin: bytes, source: KernelSource, key: str) -> None:
    if meta["schema"] != SCHEMA or meta["key"] != key:
        raise _BadEntryError("it belongs to another kernel")
    if text != source.text.encode():
        raise _BadEntryError(f"{_SOURCE} is damaged")
    if hashlib.sha256(cubin).hexdigest() != meta["cubin_sha256"]:
        raise _BadEntryError(f"{_CUBIN} is damaged")


def _build_from(meta: Any, cubin: bytes, source: KernelSource, key: str) -> Build:
    resources = dict(meta["resources"])
    resources["warnings"] = tuple(resources["warnings"])
    major, minor = meta["nvrtc_version"]
    return Build(
        source=source,
        key=key,
        cubin=cubin,
        log=meta["log"],
        resources=Resources(**resources),
        compile_time_s=float(meta["compile_time_s"]),
        nvrtc_version=(major, minor),
        origin="disk",
    )


def _holds_only_our_files(folder: Path) -> bool:
    """Whether `folder` is podrt's to list and to remove, whatever folder the user pointed it at."""
    try:
        return all(name in _FILES for name in os.listdir(folder))
    except OSError:
        return False


def _rename(folder: Path, target: Path) -> bool:
    """Rename `folder`; False if something else is already there."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _warn_once(reason: str) -> None:
    """Tell that kernels stay in memory, once per reason and process."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"podrt: compiled kernels are kept in memory only: {reason}",
            RuntimeWarning,
            stacklevel=4,
        )
