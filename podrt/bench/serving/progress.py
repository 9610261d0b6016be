"""A bar over the rows that a serving benchmark is to measure, on a terminal's stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from podrt.bench.progress import progress_bars


class RowsBar:
    """How many rows are done, and what is measured now."""

    def __init__(self, bars: Progress, total: int) -> None:
        self._bars, self._total = bars, total
        self._task = bars.add_task("", total=total)

    def show(self, what: str) -> None:
        """Say what is measured now."""
        self._bars.update(self._task, description=what)

    def reach(self, done: int) -> None:
        """Say how many rows are done; those of an engine that failed count as done."""
        self._bars.update(self._task, completed=min(done, self._total))


@contextmanager
def rows_bar(total: int, out: Console | None = None) -> Iterator[RowsBar]:
    """Show a bar over so many rows, with the time left; nothing where `out` is no terminal.

    Parameters
    ----------
    total : int
        Rows to measure.
    out : rich.console.Console, optional
        By default this process's stderr, so that rows on stdout may go to a file.
    """
    with progress_bars(out or Console(stderr=True), time_left=True) as bars:
        yield RowsBar(bars, total)
