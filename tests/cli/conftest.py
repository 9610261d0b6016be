from __future__ import annotations

import pytest

from podrt import jit, knobs


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Whose width test runners pass on: tables are as wide as in a pipe."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def empty_cache(tmp_path):
    """Nothing in memory, and a cache folder of the test's own."""
    jit.reset()
    with knobs.scope(cache_dir=tmp_path / "cache", disable_jit=False, disable_cache=False):
        yield tmp_path / "cache"
