"""What holds for every test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from podrt import knobs

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before NumPy and torch: threads of several processes, each on all cores, wait for each other,
    # and burn most of the time in doing so.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


@pytest.fixture(autouse=True)
def knobs_are_left_alone() -> Iterator[None]:
    """Fail the test that leaves a knob overridden, rather than one that comes after it."""
    before = dict(knobs._overrides)
    yield
    assert knobs._overrides == before


@pytest.fixture(scope="session")
def kernels_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder that begins empty, and that all workers of this run share."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "kernels"


@pytest.fixture
def compiled_once(kernels_of_this_run: Path) -> Iterator[None]:
    """Build what the templates say now, once for all tests of this run; no user's cache is read."""
    with knobs.scope(
        cache_dir=kernels_of_this_run, cache_max_bytes=0, disable_cache=False, disable_jit=False
    ):
        yield


def pytest_collection_finish() -> None:
    """Spare the garbage collector, which many tests call, the objects of what was imported."""
    gc.collect()
    gc.freeze()
