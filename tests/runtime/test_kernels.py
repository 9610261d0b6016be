"""Which build of a variant is loaded: the plain one, but for who asks for instrumented ones."""

from __future__ import annotations

from threading import Thread

import pytest

from podrt.explore.select import select
from podrt.kernels.families import source_of
from podrt.kernels.tracing import traced
from podrt.runtime import kernels

VARIANT = select(archs=["sm_90a"], families=["hopper"], forms=["pod"])[0]


@pytest.fixture
def load(monkeypatch):
    """Return what loads the variant, and gives the source of what was loaded."""
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(kernels, "build", lambda source: source)
    monkeypatch.setattr(kernels, "load", lambda built, device: (built, device))
    return lambda: kernels.load_kernel(VARIANT, 0)[0]


def test_instrumented_builds_are_for_those_who_ask(load):
    plain, instrumented = source_of(VARIANT), traced(source_of(VARIANT))
    assert load() == plain
    with kernels.instrumented_kernels():
        assert load() == instrumented
        elsewhere = []
        other = Thread(target=lambda: elsewhere.append(load()))
        other.start()
        other.join()
        assert elsewhere == [plain]
    assert load() == plain


def test_an_error_inside_ends_it(load):
    with pytest.raises(KeyError), kernels.instrumented_kernels():
        raise KeyError
    assert load() == source_of(VARIANT)
    assert kernels.load_kernel(VARIANT, 0) is kernels.load_kernel(VARIANT, 0)
