"""The driver's version is found without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from podrt.gpu import driver_version as module

PROC = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (x@y)  "
    "Tue Sep 23 09:55:41 UTC 2025\nGCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2)\n"
)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    module.driver_version.cache_clear()
    yield
    module.driver_version.cache_clear()


def test_the_kernel_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(PROC)
    monkeypatch.setattr(module, "_PROC", tmp_path / "version")
    assert module.driver_version() == "580.95.05"


@pytest.mark.parametrize(("supported", "said"), [(None, None), ((13, 0), "CUDA 13.0")])
def test_else_what_the_driver_supports_is_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    supported: tuple[int, int] | None,
    said: str | None,
) -> None:
    monkeypatch.setattr(module, "_PROC", tmp_path / "none")
    monkeypatch.setattr(module, "driver_cuda_version", lambda: supported)
    assert module.driver_version() == said
