"""What was measured on this machine, kept on disk: a file for each kind, GPU, driver and podrt.

Files lie in the folder ``tuned`` beside the compiled kernels, so `PODRT_CACHE_DIR` and
`PODRT_DISABLE_CACHE` hold for them too. They are JSON that a person can read, replaced in one step,
and read once by a process: what is written later counts in processes that start later. A file that
is damaged, or states another owner, is ignored with one warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

from podrt._version import __version__
from podrt.errors import PodrtError
from podrt.gpu.device import DeviceInfo
from podrt.gpu.driver_version import driver_version
from podrt.jit import open_cache
from podrt.jit.files import fsync_folder, write_durably

T = TypeVar("T")
Kind = Literal["costs", "winners"]

_FOLDER = "tuned"
#: Of the layout of the files; another number is another file.
_FORMAT = 1
_DIGITS = 16

_read: dict[Path, Any] = {}


class NoStoreError(PodrtError, OSError):
    """There is nowhere to keep what was measured; the message says what to do."""


@dataclass(frozen=True)
class Owner:
    """What measurements hold for: a GPU with its driver, and the podrt whose kernels they are of.

    Attributes
    ----------
    gpu : str
        Product name.
    num_sms, l2_bytes : int
    memory_gbs : float
        As of `DeviceInfo`.
    driver, podrt : str
        Versions.
    """

    gpu: str
    num_sms: int
    l2_bytes: int
    memory_gbs: float
    driver: str
    podrt: str


def owner_of(gpu: DeviceInfo) -> Owner | None:
    """Return whose measurements a GPU's are on this machine; None where it has no driver."""
    driver = driver_version()
    if driver is None:
        return None
    memory_gbs = round(gpu.memory_gbs, 1)
    return Owner(gpu.name, gpu.num_sms, gpu.l2_bytes, memory_gbs, driver, __version__)


def path_of(kind: Kind, gpu: DeviceInfo) -> Path | None:
    """Return the file of a kind for a GPU, which need not exist; None where there is no place."""
    owner = owner_of(gpu)
    cache = None if owner is None else open_cache()
    if owner is None or cache is None:
        return None
    text = json.dumps([_FORMAT, asdict(owner)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
    slug = re.sub(r"[^a-z0-9]+", "-", owner.gpu.lower()).strip("-")
    return cache.path / _FOLDER / f"{slug}.{digest}.{kind}.json"


def load(kind: Kind, gpu: DeviceInfo, parse: Callable[[Mapping[str, Any]], T]) -> T | None:
    """Return what is kept of a GPU; None where that is nothing, or nothing usable.

    Parameters
    ----------
    kind : {"costs", "winners"}
        What.
    gpu : DeviceInfo
        The GPU.
    parse : callable
        From the content, as given to `save`, to the value; a ValueError, TypeError or KeyError of
        it says that the content is bad.
    """
    path = path_of(kind, gpu)
    if path is None:
        return None
    if path not in _read:
        _read[path] = _parsed(path, owner_of(gpu), parse)
    found: T | None = _read[path]
    return found


def save(kind: Kind, gpu: DeviceInfo, content: Mapping[str, Any]) -> Path:
    """Keep something of a GPU in place of what was there, and return its file.

    Raises
    ------
    NoStoreError
        There is no place for it, or it cannot be written.
    """
    path = require_path(kind, gpu)
    record = {"format": _FORMAT, "owner": asdict(_require_owner(gpu)), "content": content}
    temp = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            write_durably(temp, (json.dumps(record, indent=1) + "\n").encode())
            os.replace(temp, path)
        finally:
            temp.unlink(missing_ok=True)
        with suppress(OSError):  # it is there; only its name may not survive a crash
            fsync_folder(path.parent)
    except OSError as error:
        raise NoStoreError(
            f"{path.parent} cannot be written ({error.strerror}); set PODRT_CACHE_DIR"
        ) from error
    return path


def require_path(kind: Kind, gpu: DeviceInfo) -> Path:
    """Return the file of a kind for a GPU; NoStoreError where there is no place for one."""
    _require_owner(gpu)
    path = path_of(kind, gpu)
    if path is None:
        raise NoStoreError(
            "there is no folder to keep measurements in: set PODRT_CACHE_DIR to one that can be "
            "written, and unset PODRT_DISABLE_CACHE"
        )
    return path


def forget() -> None:
    """Read files again when they are asked for the next time; objects made before stay as is."""
    _read.clear()


def _require_owner(gpu: DeviceInfo) -> Owner:
    owner = owner_of(gpu)
    if owner is None:
        raise NoStoreError("measurements are kept by the NVIDIA driver's version: there is none")
    return owner


def _parsed(path: Path, owner: Owner | None, parse: Callable[[Mapping[str, Any]], T]) -> T | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        _warn(path, error)
        return None
    try:
        record = json.loads(text)
        if record["format"] != _FORMAT or owner is None or record["owner"] != asdict(owner):
            raise ValueError("it is of another GPU, driver or podrt")
        return parse(record["content"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _warn(path, error)
        return None


def _warn(path: Path, error: Exception) -> None:
    reason = f"{error} is missing" if isinstance(error, KeyError) else error
    warnings.warn(
        f"podrt: the measurements in {path} are ignored: {reason}; podrt tune makes them again",
        RuntimeWarning,
        stacklevel=5,
    )
