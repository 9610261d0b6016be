"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from podrt import knobs


@pytest.fixture(autouse=True)
def knobs_are_left_alone() -> Iterator[None]:
    """Fail the test that leaves a knob overridden, rather than one that comes after it."""
    before = dict(knobs._overrides)
    yield
    assert knobs._overrides == before
