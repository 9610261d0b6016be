"""Tensor maps: what the driver is asked, and what is said when it refuses or is not there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from podrt.errors import DeviceError
from podrt.kernels import tensor_map as module
from podrt.kernels.tensor_map import TENSOR_MAP_BYTES, tensor_map

CACHE: dict[str, Any] = {
    "pointer": 1 << 40,
    "shape": (128, 8, 16, 1000),
    "strides": (1, 128, 1024, 16384),
    "box": (64, 1, 16, 1),
    "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """The driver is kept by the module; these are not real ones."""
    module._driver.cache_clear()
    yield
    module._driver.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of the driver, which answers with a map of 0, 1, 2, ... and success."""
    calls: list[tuple[Any, ...]] = []

    def encode(*arguments: Any) -> int:
        calls.append(arguments)
        assert arguments[0].value % 64 == 0, "the driver wants aligned memory"
        ctypes.memmove(arguments[0], bytes(range(TENSOR_MAP_BYTES)), TENSOR_MAP_BYTES)
        return 0

    monkeypatch.setattr(module, "_driver", driver(encode))
    return calls


def driver(encode: Any) -> Any:
    """Stands for the cached function that loads the driver."""
    loaded = SimpleNamespace(cuTensorMapEncodeTiled=encode)
    load: Any = lambda: loaded  # noqa: E731
    load.cache_clear = lambda: None
    return load


def test_driver_is_asked_for_a_swizzled_bfloat16_map(asked: list[tuple[Any, ...]]) -> None:
    encoded = tensor_map(**CACHE)
    assert encoded == bytes(range(128))
    ((_, dtype, rank, pointer, shape, strides, box, steps, *modes),) = asked
    assert (dtype.value, rank.value, pointer.value) == (9, 4, 1 << 40)
    assert list(shape) == [128, 8, 16, 1000]
    assert list(strides) == [256, 2048, 32768]  # bytes; the innermost is not asked for
    assert list(box) == [64, 1, 16, 1]
    assert list(steps) == [1, 1, 1, 1]
    # No interleaving, 128-byte swizzle, no L2 promotion, zeros outside.
    assert [mode.value for mode in modes] == [0, 3, 0, 0]


def test_float16_map(asked: list[tuple[Any, ...]]) -> None:
    tensor_map(**CACHE | {"dtype": "float16"})
    assert asked[0][1].value == 6


def test_offsets_beyond_32_bits_are_kept(asked: list[tuple[Any, ...]]) -> None:
    tensor_map(**CACHE | {"shape": (128, 8, 16, 2**31), "strides": (1, 128, 1024, 2**35)})
    assert asked[0][4][3] == 2**31
    assert asked[0][5][2] == 2**36


def test_refusal_of_the_driver_tells_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_driver", driver(lambda *_: 1))
    with pytest.raises(DeviceError, match=r"CUresult 1\) of shape \(128, 8, 16, 1000\), strides"):
        tensor_map(**CACHE)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(DeviceError, match=r"no NVIDIA driver: libcuda.so.1: cannot open"):
        tensor_map(**CACHE)
