"""Tensor maps without a driver."""

from __future__ import annotations

from typing import Any

import pytest

from podrt.kernels.hopper import maps as hopper_maps


def record_maps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return the arguments of the maps that are asked for from now on.

    Each map is the bytes of its number, from 1; none is kept from before, or for later.
    """
    asked: list[tuple[Any, ...]] = []

    def tensor_map(*arguments: Any) -> bytes:
        asked.append(arguments)
        return bytes([len(asked)]) * 128

    class Encoder:
        def __init__(self, shape: Any, *others: Any) -> None:
            self.shape, self.others = shape, others

        def encode(self, pointer: int, outermost: int) -> bytes:
            return tensor_map(pointer, (*self.shape[:-1], outermost), *self.others)

    monkeypatch.setattr(hopper_maps, "tensor_map", tensor_map)
    monkeypatch.setattr(hopper_maps, "TensorMapEncoder", Encoder)
    monkeypatch.setattr(hopper_maps, "_cache_maps", hopper_maps._cache_maps.__wrapped__)
    return asked
