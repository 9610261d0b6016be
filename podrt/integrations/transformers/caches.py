"""Caches of continuous batching in which layers with a window keep all keys.

The engine's own caches of such layers are rings that a chunk of a prompt overwrites before podrt
could read what its first tokens see. Page after page is read where windows are, and no further:
what they cost is memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def all_layers_full(manager: Any) -> Iterator[None]:
    """Have a manager make its cache as if no layer had a window; its model stays as it is."""
    model = manager.model
    if _has_windows(model.config.get_text_config()):
        manager.model = _WithoutWindows(model)
    try:
        yield
    finally:
        manager.model = model


class _WithoutWindows:
    """A model as it is, but for a config that tells of no windows."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.config = _ConfigOf(model.config.get_text_config())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _ConfigOf:
    """What `get_text_config` is asked of."""

    def __init__(self, config: Any) -> None:
        self._config = copy.copy(config)
        self._config.sliding_window = None
        if getattr(config, "layer_types", None) is not None:
            self._config.layer_types = ["full_attention"] * len(config.layer_types)

    def get_text_config(self) -> Any:
        return self._config


def _has_windows(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None
