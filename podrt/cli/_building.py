"""Compile many kernels behind a progress bar."""

from __future__ import annotations

from collections.abc import Sequence

from podrt.cli._output import progress
from podrt.jit import Build, KernelSource, build_many
from podrt.kernels.families import Variant, source_of


def build_all(
    configs: Sequence[Variant],
    description: str = "compiling",
    *,
    beside: Sequence[KernelSource] = (),
) -> list[Build]:
    """Return one build per variant, in order, and of what is beside them; cached ones are kept."""
    sources = [*map(source_of, configs), *beside]
    with progress(description, len(sources)) as advance:
        return build_many(sources, lambda _: advance())
