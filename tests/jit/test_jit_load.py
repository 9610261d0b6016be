from __future__ import annotations

import sys

import pytest
from jit_support import tiny_source

from podrt import jit
from podrt.errors import DeviceError


@pytest.fixture(scope="module")
def build():
    return jit.compile_source(tiny_source())


def test_without_cupy_the_error_says_how_to_install_it(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"needs CuPy.*pip install 'podrt\[cuda13\]'"):
        jit.load(build, 0)


def test_device_that_is_not_there_is_a_device_error(build):
    pytest.importorskip("cupy")
    with pytest.raises(DeviceError, match=r"tiny1 \(compiled for sm_90a\).*device 999"):
        jit.load(build, 999)
