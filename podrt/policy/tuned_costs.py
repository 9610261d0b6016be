"""The `LaunchCosts` that `podrt tune` has fitted to the GPUs of this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from podrt.gpu.device import DeviceInfo
from podrt.policy import store
from podrt.policy.constants import LaunchCosts

#: Fields that are a pair, for head_dim 64 and 128.
_PAIRS = ("prefill_tflops_per_sm", "read_gbs")
_TEXTS = ("gpu", "source")


@dataclass(frozen=True)
class TunedCosts:
    """Constants fitted to one GPU, and how far off they are.

    Attributes
    ----------
    costs : LaunchCosts
        What was fitted.
    launches : int
        Launches that it was fitted to.
    error, held_out_error, shipped_error : float
        Geomean of the factor, 1 or more, by which predictions of those launches are off: with these
        constants; with constants fitted to the half of the batches that the launch is not of; and
        with the record that podrt ships.
    """

    costs: LaunchCosts
    launches: int
    error: float
    held_out_error: float
    shipped_error: float


def load_costs(gpu: DeviceInfo) -> TunedCosts | None:
    """Return what was fitted to a GPU of this machine; None without that."""
    return store.load("costs", gpu, _parse)


def save_costs(gpu: DeviceInfo, tuned: TunedCosts) -> Path:
    """Keep what was fitted to a GPU, and return its file; raises as `podrt.policy.store.save`."""
    return store.save("costs", gpu, asdict(tuned))


def _parse(content: Mapping[str, Any]) -> TunedCosts:
    values = dict(content["costs"])
    names = {field.name for field in fields(LaunchCosts)}
    if values.keys() != names:
        raise ValueError(f"constants {sorted(values.keys() ^ names)} are missing or unknown")
    numbers = {name: _number(name, values[name]) for name in names - {*_PAIRS, *_TEXTS}}
    pairs = {name: _pair(name, values[name]) for name in _PAIRS}
    texts = {name: str(values[name]) for name in _TEXTS}
    return TunedCosts(
        LaunchCosts(**texts, **numbers, **pairs),  # type: ignore[arg-type]
        launches=int(content["launches"]),
        error=_number("error", content["error"]),
        held_out_error=_number("held_out_error", content["held_out_error"]),
        shipped_error=_number("shipped_error", content["shipped_error"]),
    )


def _pair(name: str, value: Any) -> tuple[float, float]:
    first, second = value
    return _number(name, first), _number(name, second)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is no number")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r} is not greater than 0")
    return float(value)
