"""Options that were given but mean nothing beside the others are refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterable

import typer

#: Parameters of commands that describe a layer, and the batches of a trace.
LAYER = ("heads", "head_dim", "v_head_dim", "page_size", "dtype")
BATCHES = ("budget", "batches", "max_kv_tokens")


def given(context: typer.Context, parameters: Iterable[str]) -> list[str]:
    """Return those options, of parameters of the running command, that the command line has."""
    return [
        f"--{name.replace('_', '-')}"
        for name in parameters
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]


def refuse_given(context: typer.Context, parameters: Iterable[str], reason: str) -> None:
    """Raise ValueError if any of some options was given; `reason` says what to do."""
    if options := given(context, parameters):
        raise ValueError(f"{', '.join(options)}: {reason}")
