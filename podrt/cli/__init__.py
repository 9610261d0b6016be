"""The ``podrt`` command. Each sub-command has a file of its own and is thin over the package."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from podrt._version import __version__
from podrt.cli import bench, cache, demo, doctor, explore, plan, tune, warmup
from podrt.cli._output import print_error
from podrt.errors import PodrtError

app = typer.Typer(
    name="podrt",
    help="Prefill and decode attention of one hybrid batch in one CUDA launch.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.command("tune")(tune.tune)
app.command("warmup")(warmup.warmup)
app.add_typer(bench.app, name="bench")
app.add_typer(cache.app, name="cache")
app.add_typer(explore.app, name="explore")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error that names its cause is printed without a traceback.

    Those are podrt's own errors, values that it refuses, and files that cannot be used. All others
    are faults of podrt, which a traceback helps to find.
    """
    try:
        app()
    except (PodrtError, ValueError, OSError) as error:
        print_error(error)
        sys.exit(2)


__all__ = ["app", "main"]
