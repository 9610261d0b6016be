"""``podrt explore roofline``: how near measured launches came to the ceilings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from podrt.bench import roofline as bench_roofline
from podrt.bench.results import load
from podrt.bench.roofline import USUAL_POLICIES
from podrt.bench.sweep.records import load as load_sweep
from podrt.bench.sweep.roofline import roofline as sweep_roofline
from podrt.cli._options import JsonOption
from podrt.cli._output import console, print_json, require_figure


def roofline(
    results: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="Results of podrt bench, or records of podrt explore sweep (.jsonl).",
        ),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Which of its policies; repeatable. Default: {' '.join(USUAL_POLICIES)}; of a "
            "sweep all variants."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw it too: .png, .svg or .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how near measured launches came to what this GPU's arithmetic and memory reach. No GPU.

    Shares are of ceilings measured in the same run. "overlap" is how much of the shorter side was
    hidden behind the longer one: 1 all of it, 0 nothing. Example:
    podrt explore roofline bench/results/h100/peers.json --plot roofline.png
    """
    if plot is not None:
        require_figure(plot)
    if results.suffix == ".jsonl":
        sweep = load_sweep(results)
        points, gpu = sweep_roofline(sweep, policy), ", ".join(sweep.gpus)
    else:
        loaded = load(results)
        measured = bench_roofline.policies_of(loaded)
        usual = [name for name in USUAL_POLICIES if name in measured]
        points = bench_roofline.roofline(loaded, policy or usual)
        gpu = loaded.environment["gpu"]
    if plot is not None:
        bench_roofline.plot_roofline(points, f"{results.stem}, {gpu}", plot)
    if as_json:
        print_json([point.to_dict() for point in points])
    else:
        console().print(bench_roofline.roofline_table(points))
