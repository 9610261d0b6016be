"""A store of one's own, on a machine whose driver is made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from podrt import knobs
from podrt.policy import schedule, store


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of what is kept; schedulers forget what they have read, too."""
    monkeypatch.setattr(store, "driver_version", lambda: "580.1")
    monkeypatch.setattr(store, "_read", {})
    schedule._scheduler.cache_clear()
    with knobs.scope(cache_dir=tmp_path / "cache", disable_cache=False):
        yield tmp_path / "cache" / "tuned"
    schedule._scheduler.cache_clear()
