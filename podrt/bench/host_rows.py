"""Rows of the suite ``host``: what a step of a server costs, as the host's clock sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.table import Table
from rich.text import Text

from podrt.bench.tables import empty_table

What = Literal["run", "run alone", "first run", "plan", "grow", "write", "step", "replay"]


@dataclass(frozen=True)
class HostRow:
    """One thing that was timed, in microseconds.

    Attributes
    ----------
    what : str
        ``"run"``: one of 32 layers that follow each other after a synchronize, mean of the 32.
        ``"run alone"``: one call after a synchronize. ``"first run"``: the one after a `plan`.
        ``"plan"``: its upload included. ``"grow"``: a step of the same decodes a key later, planned
        where it has to be. ``"write"``: as ``"run"``, of new keys and values.
        ``"step"``: a plan, then a write and a run without `out` for each of 32 layers, all that
        podrt adds to an eager step. ``"replay"``: time on the GPU, of replays and of what they are
        compared with.
    framework : str
        Whose tensors: ``"torch"`` or ``"cupy"``.
    requests : int
        Of the batch.
    case : str
        The batch, and how the call was made.
    median_us, p99_us : float
        Over all samples; of ``"run"`` a sample is the mean of a burst.
    """

    what: What
    framework: str
    requests: int
    case: str
    median_us: float
    p99_us: float


def row_of(
    what: What, framework: str, requests: int, case: str, samples_us: Sequence[float]
) -> HostRow:
    """Return the row that samples amount to."""
    median_us, p99_us = (round(float(us), 2) for us in np.percentile(samples_us, (50, 99)))
    return HostRow(what, framework, requests, case, median_us, p99_us)


def host_table(rows: Sequence[HostRow], bars_us: Mapping[tuple[str, str], float]) -> Table:
    """Return a line per row; `bars_us` holds ``{(what, case): median allowed}``."""
    table = empty_table()
    for heading in ("what", "framework"):
        table.add_column(heading)
    table.add_column("requests", justify="right")
    table.add_column("case", overflow="fold")
    for heading in ("median us", "p99 us", "bar us"):
        table.add_column(heading, justify="right")
    for row in rows:
        bar_us = bars_us.get((row.what, row.case))
        style = "" if bar_us is None else "green" if row.median_us <= bar_us else "red"
        table.add_row(
            row.what,
            row.framework,
            str(row.requests),
            row.case,
            Text(f"{row.median_us:.2f}", style),
            f"{row.p99_us:.2f}",
            "-" if bar_us is None else f"{bar_us:g}",
        )
    return table


def replay_lines(rows: Sequence[HostRow]) -> list[str]:
    """Say what replays cost over what they are compared with, from rows of one case.

    Cases are ``"BATCH: HOW"``; the first row of a batch is what the others are compared with.
    """
    first: dict[str, HostRow] = {}
    lines = []
    for row in (row for row in rows if row.what == "replay"):
        batch, _, how = row.case.partition(": ")
        base = first.setdefault(batch, row)
        if base is not row:
            extra_us = row.median_us - base.median_us
            ratio = row.median_us / base.median_us
            base_how = base.case.partition(": ")[2]
            lines.append(f"{batch}: {how} / {base_how}: {ratio:.3f} ({extra_us:+.2f} us)")
    return lines
