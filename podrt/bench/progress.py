"""Progress bars on a terminal, all alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def progress_bars(out: Console, *, time_left: bool = False) -> Iterator[Progress]:
    """Give bars that are gone at the end, and that nobody sees where `out` is no terminal.

    Parameters
    ----------
    out : rich.console.Console
        Usually of stderr, so that results on stdout may go to a file.
    time_left : bool
        Say how long it will take, too: for what takes about the same time again and again.
    """
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    if time_left:
        columns += [TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        yield bars
