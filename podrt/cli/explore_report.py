"""``podrt explore report``: a sweep, and a timeline, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from podrt.bench.results import write_whole
from podrt.bench.sweep.page.code import codes_of
from podrt.bench.sweep.page.contents import contents_of
from podrt.bench.sweep.page.page import MAX_BYTES, page_of
from podrt.bench.sweep.page.trace import read_trace, timeline_of_sweep
from podrt.bench.sweep.records import load
from podrt.cli._output import console


def report(
    sweep: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="Records of podrt explore sweep: .jsonl."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", dir_okay=False, help="The file: .html.")],
    timeline: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="What podrt explore trace wrote with --record or --chrome. Default: timeline.json "
            "beside the sweep, else the first batch as the cost model simulates it.",
        ),
    ] = None,
    no_sass: Annotated[
        bool, typer.Option("--no-sass", help="Compile nothing, and leave SASS out.")
    ] = False,
) -> None:
    """Write a sweep as one HTML file that needs no network. Needs no GPU.

    It has the environment, all records to sort and filter, heat maps, the roofline, the timeline,
    and source and SASS of the kernels that won most batches. A click on a cell of a heat map shows
    its variant and how podrt plans its batch. Example:

    podrt explore report sweep.jsonl --timeline trace.json -o report.html
    """
    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"--out {out}: must end with .html")
    found = load(sweep)
    page = page_of(
        contents_of(found),
        codes_of(found, with_sass=not no_sass),
        timeline_of_sweep(found, sweep) if timeline is None else read_trace(timeline),
        title=f"podrt: sweep {sweep.stem}",
    )
    write_whole(page, out)
    size = len(page.encode()) / 1e6
    console(stderr=True).print(
        f"{out}: {size:.1f} MB of at most {MAX_BYTES / 1e6:.1f}", markup=False
    )
