"""What a process remembers of kernels between calls, and the one way to forget it all."""

from __future__ import annotations

from collections.abc import Callable

_forgetters: list[Callable[[], None]] = []


def on_reset(forget: Callable[[], None]) -> Callable[[], None]:
    """Have `reset` call `forget` too; returns it, so that this may stand above a function."""
    _forgetters.append(forget)
    return forget


def reset() -> None:
    """Forget every kernel in memory, compiled or loaded, and set the counters to zero.

    The disk is left alone, and so is a kernel that somebody still holds.
    """
    for forget in _forgetters:
        forget()
