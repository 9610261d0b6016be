"""Compiled kernels on disk, safe for many processes at once.

Each variant has a folder ``<name>.<first 16 digits of its key>`` whose files a person can read. A
folder is written aside and renamed into place, so that it is there as a whole or not at all; no
locks, which network file systems do not honour.
"""

from __future__ import annotations

import os
import pwd
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from podrt import knobs
from podrt._version import __version__
from podrt.jit.artifact import Build
from podrt.jit.entry import (
    FILES,
    BadEntryError,
    last_use_s,
    read_entry,
    touch_entry,
    write_entry,
)
from podrt.jit.files import fsync_folder, is_writable, remove, rename
from podrt.jit.key import Recipe

_KEY_DIGITS = 16
_ENTRY_NAME = re.compile(rf"(?P<name>.+)\.(?P<key>[0-9a-f]{{{_KEY_DIGITS}}})")
_TEMP_PREFIX = ".tmp-"
_STALE_TEMP_S = 3600.0

_warned: set[str] = set()


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
    age_s, unused_s : float
        Seconds since it was written, and since a process last took it from disk or wrote it.
    """

    name: str
    key: str
    path: Path
    size_bytes: int
    age_s: float
    unused_s: float


class DiskCache:
    """The compiled kernels in one folder.

    The folder is made when the first kernel is stored, for its user alone; one that is already
    there keeps its permissions, and may be shared.

    Parameters
    ----------
    root : Path
        The folder.
    max_bytes : int
        What all entries may take; beyond it, those that were not used for longest are removed when
        one is stored. 0: no bound.
    """

    def __init__(self, root: Path, max_bytes: int = 0) -> None:
        self._root, self._max_bytes = root, max_bytes

    @property
    def path(self) -> Path:
        """The folder."""
        return self._root

    @property
    def is_writable(self) -> bool:
        """Whether kernels can be stored, as far as permissions tell."""
        return is_writable(self._root)

    def holds(self, recipe: Recipe) -> bool:
        """Whether there is an entry for `recipe`, good or bad."""
        return self._entry_path(recipe).is_dir()

    def load(self, recipe: Recipe) -> Build | None:
        """Return the build stored for `recipe`, or None.

        An entry that is damaged or belongs to something else counts as missing, with one warning.
        """
        entry = self._entry_path(recipe)
        try:
            build = read_entry(entry, recipe)
        except BadEntryError as error:
            # Absent, or taken away by another process while it was being read.
            if os.path.lexists(entry):
                warnings.warn(
                    f"podrt: the cache entry {entry} is ignored: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return None
        touch_entry(entry)
        return build

    def store(self, build: Build) -> None:
        """Store `build`, in place of a bad entry if there is one.

        A folder that cannot be written is no error: podrt warns once and goes on in memory.
        """
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep_stale_temps()
            with self._temp_folder() as temp:
                write_entry(temp, build)
                self._publish(temp, build.recipe)
        except OSError as error:
            _warn_once(f"{self._root} cannot be written ({error.strerror}); set PODRT_CACHE_DIR")
        else:
            self._evict(keep=self._entry_path(build.recipe))

    def list(self) -> tuple[Entry, ...]:
        """Return the entries, by name."""
        now = time.time()
        entries = []
        for path, match in self._entry_folders():
            with suppress(FileNotFoundError):  # another process may have just removed it
                size_bytes = sum(file.stat().st_size for file in path.iterdir())
                age_s = max(0.0, now - path.stat().st_mtime)
                unused_s = max(0.0, now - last_use_s(path))
                entries.append(
                    Entry(match["name"], match["key"], path, size_bytes, age_s, unused_s)
                )
        return tuple(entries)

    def clear(self) -> int:
        """Remove every entry and return how many there were; other files in the folder stay."""
        self._sweep_stale_temps()
        folders = [path for path, _ in self._entry_folders()]
        for folder in folders:
            self._discard(folder)
        return len(folders)

    def _entry_path(self, recipe: Recipe) -> Path:
        return self._root / f"{recipe.source.name}.{recipe.key[:_KEY_DIGITS]}"

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
            remove(temp)

    def _publish(self, temp: Path, recipe: Recipe) -> None:
        entry = self._entry_path(recipe)
        if not rename(temp, entry):
            try:
                read_entry(entry, recipe)
                return  # another process was first, and its entry is good
            except BadEntryError:
                self._discard(entry)
            # Losing once more means that another process has just replaced the bad entry.
            rename(temp, entry)
        fsync_folder(self._root)

    def _evict(self, keep: Path) -> None:
        """Remove what was not used for longest, as far as the bound asks for it; never `keep`."""
        if not self._max_bytes:
            return
        total_bytes = 0
        for entry in sorted(self.list(), key=lambda entry: entry.unused_s):
            total_bytes += entry.size_bytes
            if total_bytes > self._max_bytes and entry.path != keep:
                with suppress(OSError):  # not ours to remove
                    self._discard(entry.path)

    def _discard(self, path: Path) -> None:
        """Remove `path` so that other processes see it as a whole or not at all."""
        trash = self._root / f"{_TEMP_PREFIX}{uuid4().hex}"
        with suppress(FileNotFoundError):
            path.rename(trash)
            remove(trash)

    def _sweep_stale_temps(self) -> None:
        """Remove what processes that died in the middle of writing left behind."""
        oldest = time.time() - _STALE_TEMP_S
        for temp in self._root.glob(f"{_TEMP_PREFIX}*"):
            with suppress(FileNotFoundError):
                if temp.lstat().st_mtime < oldest:
                    remove(temp)


def open_cache() -> DiskCache | None:
    """Return the cache that the knobs choose, or None if kernels are to stay in memory."""
    if knobs.disable_cache():
        return None
    root = knobs.cache_dir() or _default_root()
    if root is None:
        _warn_once("this user has no home folder; set PODRT_CACHE_DIR")
        return None
    return DiskCache(root, knobs.cache_max_bytes())


def _default_root() -> Path | None:
    """Return podrt's part of the user's cache folder by the XDG rules; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # to be ignored then, the rules say
        home = _home()
        if home is None:
            return None
        base = os.path.join(home, ".cache")
    return Path(base, "podrt", __version__)


def _home() -> str | None:
    """Return the user's home folder; None where neither HOME nor the user database has one."""
    home = os.environ.get("HOME", "")
    if not home:
        with suppress(KeyError):  # containers run as users that nobody has entered
            home = pwd.getpwuid(os.getuid()).pw_dir
    return home if os.path.isabs(home) else None


def _holds_only_our_files(folder: Path) -> bool:
    """Whether `folder` is podrt's to list and to remove, whatever folder the user pointed it at."""
    try:
        return all(name in FILES for name in os.listdir(folder))
    except OSError:
        return False


def _warn_once(reason: str) -> None:
    """Tell that kernels stay in memory, once per reason and process."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"podrt: compiled kernels are kept in memory only: {reason}",
            RuntimeWarning,
            stacklevel=4,
        )
