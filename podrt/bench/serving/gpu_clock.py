"""Where the GPU's time goes, by kind of kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Kinds of kernels, by their names; the first that fits counts.
_KINDS = {
    "writes": re.compile(r"cache_write|reshape_and_cache", re.I),
    "helpers": re.compile(r"prepare_varlen|combine|reduce_segments", re.I),
    "attention": re.compile(
        r"^(pod|prefill|decode)_(hopper|portable)_|flash|fmha|sdpa|unified_attention", re.I
    ),
}


@contextmanager
def gpu_times() -> Iterator[dict[str, Any]]:
    """Sum GPU time by kind of kernel; the dictionary is filled at the end."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    found: dict[str, Any] = {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        yield found
        torch.cuda.synchronize()
    by_name: dict[str, list[float]] = {}
    for event in profiler.profiler.kineto_results.events():
        if event.device_type().name == "CUDA":
            entry = by_name.setdefault(event.name(), [0.0, 0])
            entry[0] += event.duration_ns() / 1e6
            entry[1] += 1
    found["gpu_ms"] = sum(ms for ms, _ in by_name.values())
    for kind in _KINDS:
        found[f"gpu_{kind}_ms"] = sum(
            ms for name, (ms, _) in by_name.items() if _kind_of(name) == kind
        )
    longest = sorted(by_name.items(), key=lambda entry: -entry[1][0])[:8]
    found["gpu_longest"] = [(name[:90], ms, count) for name, (ms, count) in longest]


def _kind_of(kernel: str) -> str | None:
    """Return the kind of a kernel; None if it has nothing to do with attention."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(kernel)), None)
