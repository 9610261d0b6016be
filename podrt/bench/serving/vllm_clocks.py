"""The host's time in a backend's builder and layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from podrt.bench.serving.clock import timing


@contextmanager
def host_times(backend: str) -> Iterator[dict[str, Any]]:
    """Take the host's times in a backend; the dictionary has medians in us at the end.

    Where the GPU is behind, launches wait for it, and a mean would say nothing of the host.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    owner = AttentionBackendEnum[backend].get_class()
    timed: dict[str, list[float]] = {"build": [], "layer": [], "write": []}
    found: dict[str, Any] = {}
    with (
        timing(owner.get_builder_cls(), "build", timed["build"]),
        timing(owner.get_impl_cls(), "forward", timed["layer"]),
        timing(owner.get_impl_cls(), "do_kv_cache_update", timed["write"]),
    ):
        yield found
    for name, times in timed.items():
        found[f"host_{name}_us"] = float(np.median(times or [0.0]))
    found["host_layers_a_step"] = len(timed["layer"]) / max(1, len(timed["build"]))
