"""A GPU of bytes of each family."""

from __future__ import annotations

import pytest
from fake_gpu import A100, H100, FakeGpu, install

from podrt.gpu.device import DeviceInfo


@pytest.fixture(params=[H100, A100], ids=["hopper", "portable"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    info: DeviceInfo = request.param
    return install(monkeypatch, info)
