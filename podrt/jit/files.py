"""Files and folders that several processes share, on whatever file system."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

#: What fsync answers where a file system has no such thing, for folders above all.
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and have it reach the disk."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        _fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Have the names in `folder` reach the disk, where its file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(folder: Path, target: Path) -> bool:
    """Rename `folder`; False if something else is already there."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or it can be made; nothing is made to find out."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
