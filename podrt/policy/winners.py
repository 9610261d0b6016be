"""The policies that won, by measurement, in the buckets of batches of this machine's GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podrt.gpu.device import DeviceInfo
from podrt.policy import store
from podrt.policy.buckets import Bucket
from podrt.policy.candidates import candidate_names
from podrt.policy.policies import parse_policy

RULES = "auto"
#: Nothing that gains less over the rules replaces them: times scatter as much.
_TIE = 0.01


@dataclass(frozen=True)
class Trial:
    """What the candidates took for one batch of a bucket.

    Attributes
    ----------
    layer : str
        As `layer_name` says.
    bucket : Bucket
        The bucket of the batch.
    batch : str
        The batch.
    times_us : mapping of str to float
        Median times by policy, that of the rules among them as ``"auto"``.
    """

    layer: str
    bucket: Bucket
    batch: str
    times_us: Mapping[str, float]

    def winner(self, *, fused: bool = False) -> str:
        """Return the fastest policy; ``"auto"`` where nothing is faster than that by 1 %.

        With `fused`, only those of one launch count.
        """
        times_us = {
            name: us
            for name, us in self.times_us.items()
            if not (fused and parse_policy(name).serial)
        }
        best = min(times_us, key=lambda name: times_us[name])
        return best if times_us[best] * (1 + _TIE) < self.times_us[RULES] else RULES

    def __str__(self) -> str:
        """Say what won, by how much, where."""
        winner, rules_us = self.winner(), self.times_us[RULES]
        where = f"bucket {self.bucket} ({self.layer})"
        if winner == RULES:
            return f"measured winner of {where}: the rule, {rules_us:.0f} us"
        us = self.times_us[winner]
        return f"measured winner of {where}: {winner}, {us:.0f} us, the rule {rules_us:.0f}"


def load_trials(gpu: DeviceInfo) -> tuple[Trial, ...]:
    """Return what was measured on a GPU of this machine."""
    return store.load("winners", gpu, _parse) or ()


def save_trials(gpu: DeviceInfo, trials: Iterable[Trial]) -> Path:
    """Keep trials beside those of other buckets, and return their file.

    Raises as `podrt.policy.store.save`. Of two processes that do so at once, one may lose its own.
    """
    store.forget()
    kept = {(each.layer, each.bucket): each for each in (*load_trials(gpu), *trials)}
    content = [
        {
            "layer": each.layer,
            "bucket": list(each.bucket),
            "batch": each.batch,
            "times_us": dict(each.times_us),
        }
        for each in kept.values()
    ]
    return store.save("winners", gpu, {"trials": content})


def _parse(content: Mapping[str, Any]) -> tuple[Trial, ...]:
    return tuple(_trial(each) for each in content["trials"])


def _trial(entry: Mapping[str, Any]) -> Trial:
    first, second, third, fourth = entry["bucket"]
    layer, times_us = str(entry["layer"]), {}
    known = (RULES, *candidate_names(layer.partition(" ")[0]))
    for name, time_us in entry["times_us"].items():
        if name not in known:
            raise ValueError(f"{name!r} is no candidate")
        if isinstance(time_us, bool) or not isinstance(time_us, int | float):
            raise TypeError(f"{name}: {time_us!r} is no time")
        if not (math.isfinite(time_us) and time_us > 0):
            raise ValueError(f"{name}: {time_us!r} is no time")
        times_us[name] = float(time_us)
    if RULES not in times_us:
        raise ValueError(f"{entry['batch']}: has no time of {RULES!r}")
    bucket = Bucket(int(first), int(second), int(third), int(fourth))
    return Trial(layer, bucket, str(entry["batch"]), times_us)
