"""What every sub-command prints with: tables, JSON, progress bars, errors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from podrt.bench.progress import progress_bars
from podrt.bench.tables import empty_table

#: Wide enough that no variant name is folded where nobody reads by eye.
_PIPE_WIDTH = 240
#: Endings of figures.
_FIGURES = (".png", ".svg", ".pdf")


def console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or wide enough for any row in a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def require_figure(path: Path) -> None:
    """Raise ValueError unless a file's name says which kind of figure it is to be."""
    if path.suffix not in _FIGURES:
        raise ValueError(f"figure={str(path)!r}: must end with one of {', '.join(_FIGURES)}")


def print_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    typer.echo(json.dumps(value, indent=2))


def print_error(error: Exception | str) -> None:
    """Print an error to stderr, without markup: the text may hold source code."""
    console(stderr=True).print(f"error: {error}", style="red", markup=False)


def table(*columns: str, title: str | None = None, numbers: tuple[str, ...] = ()) -> Table:
    """Return an empty table that folds long text; the columns in `numbers` align to the right."""
    result = empty_table(title)
    for column in columns:
        justify: Any = "right" if column in numbers else "left"
        result.add_column(column, justify=justify, overflow="fold")
    return result


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal's stderr; call what it yields once per step."""
    with progress_bars(console(stderr=True)) as bars:
        task = bars.add_task(description, total=total)
        yield lambda: bars.advance(task)
