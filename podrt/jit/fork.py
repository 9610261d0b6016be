"""Keeps forks apart from what they must not cut through.

NVRTC and Jinja have locks of their own. A child that is forked while another thread is inside one
of them inherits its locks shut and would wait for ever at its first use.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_state = threading.Condition()
_inside = 0
_forks_waiting = 0


@contextmanager
def no_fork() -> Iterator[None]:
    """Hold back forks of this process during a ``with`` block, which may not be nested.

    Blocks of several threads run side by side. A fork waits for those under way, and goes before
    those that begin later.
    """
    global _inside
    with _state:
        _state.wait_for(lambda: _forks_waiting == 0)
        _inside += 1
    try:
        yield
    finally:
        with _state:
            _inside -= 1
            _state.notify_all()


def _before_fork() -> None:
    global _forks_waiting
    _state.acquire()
    _forks_waiting += 1
    _state.wait_for(lambda: _inside == 0)


def _after_fork_in_parent() -> None:
    global _forks_waiting
    _forks_waiting -= 1
    _state.notify_all()
    _state.release()


def _after_fork_in_child() -> None:
    global _state, _forks_waiting
    _state = threading.Condition()
    _forks_waiting = 0


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
