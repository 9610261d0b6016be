"""Files that a command line names: what cannot be read is said with the option and the path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def named_by(option: str, path: str | Path) -> Iterator[None]:
    """Have what goes wrong with a file in the block name the option that the file is from.

    Parameters
    ----------
    option : str
        Such as ``"--trace"``, or the name of an argument.
    path : path-like
        The file.

    Raises
    ------
    ValueError
        The file cannot be read, or the block raised ValueError, which begins with the path as those
        of podrt's readers do.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{option} {path}: {reason}; pass a file that can be read") from error
    except ValueError as error:
        raise ValueError(f"{option} {error}") from error


def read_text(path: Path) -> str:
    """Return a text file in UTF-8; ValueError names a file that is none, OSError one unread."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(no_text(path, error)) from error


def no_text(path: str | Path, error: UnicodeDecodeError) -> str:
    """Return what is said of a file that is no text; the error itself would show all its bytes."""
    return f"{path}: expected text in UTF-8, got {error.reason} at byte {error.start}"
