"""The host's time in methods of an engine or of a backend."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def timing(owner: Any, name: str, times_us: list[float]) -> Iterator[None]:
    """Time every call of a method of a class within the block; nothing if it has none.

    Parameters
    ----------
    owner : type or module
    name : str
        Its own method or an inherited one; of a module a function that others find by its name.
    times_us : list of float
        Grows by the time of every call.
    """
    inner = getattr(owner, name, None)
    if inner is None:
        yield
        return

    def timed(*args: Any, **kwargs: Any) -> Any:
        began_s = time.perf_counter()
        result = inner(*args, **kwargs)
        times_us.append(1e6 * (time.perf_counter() - began_s))
        return result

    own = name in vars(owner)
    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, inner)
        else:
            delattr(owner, name)
