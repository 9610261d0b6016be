"""What a process remembers of kernels between calls, and the one way to forget it all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_forgetters: list[Callable[[], None]] = []


def on_reset(forget: Callable[[], None]) -> Callable[[], None]:
    """Have `reset` call `forget` too; returns it, so that this may stand above a function."""
    _forgetters.append(forget)
    return forget


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` as `functools.cache` would; `reset` empties it."""
    cached = functools.cache(function)
    on_reset(cached.cache_clear)
    return cached  # type: ignore[return-value]


def reset() -> None:
    """Forget every kernel in memory, compiled or loaded, and set the counters to zero.

    The disk is left alone, and so is a kernel that somebody still holds.
    """
    for forget in _forgetters:
        forget()
