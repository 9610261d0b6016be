"""Compile variants as the templates say now, and say what is wrong with the builds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from podrt.jit import Build, build_many
from podrt.kernels.families import source_of
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.portable.config import KernelConfig

V = TypeVar("V", KernelConfig, HopperConfig)

#: Compile all variants; otherwise, of the rarer ones, samples of every kind.
EVERY_VARIANT = bool(os.environ.get("TEST_EVERY_VARIANT"))


def require_clean(configs: Sequence[V], more: Callable[[V, Build], Iterator[str]]) -> None:
    """Compile `configs`; none may spill or warn, nor may `more` have anything to say of it."""
    builds = build_many([source_of(config) for config in configs])
    complaints = [
        f"{config.name}: {complaint}"
        for config, build in zip(configs, builds, strict=True)
        for complaint in (*_complaints_of(build), *more(config, build))
    ]
    assert complaints == []


def _complaints_of(build: Build) -> Iterator[str]:
    used = build.resources
    if used.spill_store_bytes or used.spill_load_bytes or used.stack_bytes:
        yield (
            f"spills {used.spill_store_bytes} and {used.spill_load_bytes} bytes, "
            f"stack of {used.stack_bytes}"
        )
    yield from used.warnings
