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

    monkeypatch.setattr(hopper_maps, "tensor_map", tensor_map)
    for name in ("_query_map", "_cache_maps"):
        monkeypatch.setattr(hopper_maps, name, getattr(hopper_maps, name).__wrapped__)
    return asked
