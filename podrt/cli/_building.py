"""Compile many variants behind a progress bar."""

from __future__ import annotations

from collections.abc import Sequence

from podrt.cli._output import progress
from podrt.jit import Build, build_many
from podrt.kernels.families import Variant, source_of


def build_all(configs: Sequence[Variant], description: str = "compiling") -> list[Build]:
    """Return one build per variant, in order; cached ones are not compiled again."""
    with progress(description, len(configs)) as advance:
        return build_many([source_of(config) for config in configs], lambda _: advance())
