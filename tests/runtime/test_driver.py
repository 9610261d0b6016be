"""Which GPU is current in a thread, during and after a call."""

from __future__ import annotations

from typing import Any

import pytest

from podrt.runtime.driver import Driver


class Contexts:
    """Stands for CuPy's driver: the current context of one thread, 0 for none."""

    def __init__(self, current: int) -> None:
        self.now = current

    def ctxGetCurrent(self) -> int:
        return self.now

    def ctxSetCurrent(self, context: int) -> None:
        self.now = context


def driver_of(ordinal: int, contexts: Contexts) -> Driver:
    driver: Any = Driver.__new__(Driver)
    driver.ordinal, driver.context, driver._driver = ordinal, 100 + ordinal, contexts
    driver.current_context = contexts.ctxGetCurrent
    return driver  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("ordinal", "before", "after"),
    [(0, 100, 100), (1, 101, 101), (1, 100, 100), (0, 0, 100), (1, 0, 0)],
    ids=["its own", "its own, not the first", "another", "none", "none, not the first"],
)
def test_the_gpu_before_is_current_again(ordinal: int, before: int, after: int) -> None:
    """A thread's first call must not move what CUDA takes for its default, GPU 0."""
    contexts = Contexts(before)
    driver = driver_of(ordinal, contexts)
    with pytest.raises(ZeroDivisionError), driver.current():
        assert driver.is_current()
        _ = 1 // 0
    assert contexts.now == after


@pytest.mark.parametrize(("stream", "is_captured"), [(7, False), (9, True)])
def test_streams_are_asked_for_their_capture(stream: int, is_captured: bool) -> None:
    driver: Any = driver_of(0, Contexts(100))
    driver.stream_is_capturing = lambda stream: stream == 9
    assert driver.is_capturing(stream) is is_captured


def test_the_legacy_stream_is_not_asked_for_its_capture() -> None:
    driver: Any = driver_of(0, Contexts(100))
    driver.stream_is_capturing = None
    assert not driver.is_capturing(0) and not driver.is_capturing(1)
