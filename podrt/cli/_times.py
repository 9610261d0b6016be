"""``podrt explore trace`` and ``roofline``: what runs when, and how near to the ceilings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from podrt.bench import roofline as bench_roofline
from podrt.bench.results import load, write_whole
from podrt.bench.roofline import USUAL_POLICIES
from podrt.bench.sweep.records import load as load_sweep
from podrt.bench.sweep.roofline import roofline as sweep_roofline
from podrt.cli._layer import (
    GpuOption,
    LayerDtype,
    LayerHeadDim,
    LayerHeads,
    LayerPageSize,
    LayerSoftCap,
    LayerWindow,
    PolicyOption,
    scheduler_of,
)
from podrt.cli._options import JsonOption
from podrt.cli._output import console, print_json
from podrt.explore.timeline import plot_timeline, simulate
from podrt.workloads.lengths import batch_of_lengths, parse_lengths


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
    if results.suffix == ".jsonl":
        sweep = load_sweep(results)
        points, gpu = sweep_roofline(sweep, policy), ", ".join(sweep.gpus)
    else:
        loaded = load(results)
        points = bench_roofline.roofline(loaded, policy or USUAL_POLICIES)
        gpu = loaded.environment["gpu"]
    if plot is not None:
        bench_roofline.plot_roofline(points, f"{results.stem}, {gpu}", plot)
    if as_json:
        print_json([point.to_dict() for point in points])
    else:
        console().print(bench_roofline.roofline_table(points))


def trace(
    batch: Annotated[str, typer.Argument(help='Such as "2048@16384 + 64x16384".')],
    heads: LayerHeads = "32/8",
    head_dim: LayerHeadDim = 128,
    page_size: LayerPageSize = 16,
    dtype: LayerDtype = "bfloat16",
    window_left: LayerWindow = None,
    soft_cap: LayerSoftCap = None,
    policy: PolicyOption = "auto",
    gpu: GpuOption = None,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw it: .png, .svg or .pdf.")
    ] = None,
    chrome: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Write it for Perfetto and chrome://tracing: .json."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each SM does when, as the cost model simulates it. No GPU; nothing is measured.

    Example: podrt explore trace "2048@16384 + 64x16384" --gpu h100 --plot trace.svg
    """
    scheduler = scheduler_of(heads, head_dim, page_size, dtype, policy, gpu, window_left, soft_cap)
    lengths = batch_of_lengths(parse_lengths(batch), page_size or None)
    timeline = simulate(scheduler.schedule(lengths), scheduler.gpu)
    if plot is not None:
        plot_timeline(timeline, f"{batch}, {heads} heads, {policy}", plot)
    if chrome is not None:
        write_whole(json.dumps(timeline.chrome_trace()), chrome)
    summary = timeline.summary()
    if as_json:
        print_json({"source": "simulated", "gpu": timeline.gpu, **summary})
        return
    typer.echo(f"simulated, {timeline.gpu}: {batch}")
    for name, value in summary.items():
        is_share = name in ("prefill_busy", "decode_busy", "both_busy", "idle")
        typer.echo(f"  {name:13s} {f'{value:.0%}' if is_share else f'{value:.0f}'}")
