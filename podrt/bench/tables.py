"""The look of podrt's tables."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table


def empty_table(title: str | None = None) -> Table:
    """Return a table without columns."""
    return Table(
        title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )
