"""Options that were given but mean nothing beside the others are refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterable

import typer

#: Parameters of commands that describe a layer, and the batches of a trace.
LAYER = ("heads", "head_dim", "v_head_dim", "page_size", "dtype")
BATCHES = ("budget", "batches", "max_kv_tokens")


def refuse_given(context: typer.Context, parameters: Iterable[str], reason: str) -> None:
    """Raise ValueError if the command line has options of some parameters.

    `reason` says what they are for, and what to do.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in parameters
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    if given:
        raise ValueError(f"{', '.join(given)}: {reason}")
