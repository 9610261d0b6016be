"""``podrt explore trace`` and ``roofline``: what runs when, and how near to the ceilings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from podrt.bench import roofline as bench_roofline
from podrt.bench.case import Case
from podrt.bench.results import load, write_whole
from podrt.bench.roofline import USUAL_POLICIES
from podrt.bench.sweep.records import load as load_sweep
from podrt.bench.sweep.roofline import roofline as sweep_roofline
from podrt.bench.trace import Traced, trace_case
from podrt.cli._layer import (
    GpuOption,
    LayerDtype,
    LayerHeadDim,
    LayerHeads,
    LayerPageSize,
    LayerSoftCap,
    LayerWindow,
    PolicyOption,
    layer_of,
    scheduler_of,
)
from podrt.cli._options import JsonOption
from podrt.cli._output import console, print_json
from podrt.errors import DeviceError
from podrt.explore.timeline import Timeline, plot_timeline, simulate
from podrt.gpu.device import current_device
from podrt.policy.policies import parse_policy
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
    batch: Annotated[
        str | None, typer.Argument(help='Such as "2048@16384 + 64x16384"; or --batch.')
    ] = None,
    batch_option: Annotated[
        str | None, typer.Option("--batch", metavar="BATCH", help="The same, as an option.")
    ] = None,
    heads: LayerHeads = "32/8",
    head_dim: LayerHeadDim = 128,
    page_size: LayerPageSize = 16,
    dtype: LayerDtype = "bfloat16",
    window_left: LayerWindow = None,
    soft_cap: LayerSoftCap = None,
    policy: PolicyOption = "auto",
    gpu: GpuOption = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Ask the cost model even where there is a GPU.")
    ] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--out",
            dir_okay=False,
            help="Write it as what the name says: .json as --chrome, others as --plot; repeatable.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw it: .png, .svg or .pdf.")
    ] = None,
    chrome: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Write it for Perfetto and chrome://tracing: .json."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each SM does when: measured on this GPU, or simulated by the cost model.

    Without a GPU, with --simulated, and for a GPU that --gpu names, it is the model, and says so.
    What is measured is an instrumented build of the same kernels, whose overhead is printed.
    Examples:

    podrt explore trace --batch "2048@16384 + 64x16384" --heads 32/8 -o trace.json -o trace.svg

    podrt explore trace "2048@16384 + 64x16384" --gpu h100 --plot trace.svg
    """
    if (batch is None) == (batch_option is None):
        raise ValueError('pass a batch once: "2048@16384 + 64x16384", or --batch "..."')
    text = batch or batch_option or ""
    layer = (heads, head_dim, page_size, dtype)
    traced: Traced | None = None
    if gpu is None and not simulated and _is_there_a_gpu():
        spec = layer_of(*layer, window_left, soft_cap)
        traced = trace_case(Case.of(parse_lengths(text), spec), parse_policy(policy))
        timeline = traced.timeline
    else:
        scheduler = scheduler_of(*layer, policy, gpu, window_left, soft_cap)
        lengths = batch_of_lengths(parse_lengths(text), page_size or None)
        timeline = simulate(scheduler.schedule(lengths), scheduler.gpu)
    for path in [chrome, *(each for each in out or [] if each.suffix == ".json")]:
        if path is not None:
            write_whole(json.dumps(timeline.chrome_trace()), path)
    for path in [plot, *(each for each in out or [] if each.suffix != ".json")]:
        if path is not None:
            plot_timeline(timeline, f"{text}, {heads} heads, {policy}", path)
    _print_timeline(text, timeline, traced, as_json=as_json)


def _print_timeline(
    batch: str, timeline: Timeline, traced: Traced | None, *, as_json: bool
) -> None:
    summary, lost = timeline.summary(), timeline.lost_events
    times = {} if traced is None else {"plain_us": traced.plain_us, "traced_us": traced.traced_us}
    if as_json:
        extra = {} if traced is None else {**times, "lost_events": lost}
        print_json({"source": timeline.source, "gpu": timeline.gpu, **summary, **extra})
        return
    typer.echo(f"{timeline.source}, {timeline.gpu}: {batch}")
    for name, value in summary.items():
        is_share = name in ("prefill_busy", "decode_busy", "both_busy", "idle")
        typer.echo(f"  {name:13s} {f'{value:.0%}' if is_share else f'{value:.0f}'}")
    if traced is not None:
        typer.echo(
            f"overhead of the instrumented build: {traced.overhead:+.1%} "
            f"({traced.plain_us:.1f} us -> {traced.traced_us:.1f} us)"
        )
    if lost:
        typer.echo(f"{lost} events found no room: spans are missing", err=True)


def _is_there_a_gpu() -> bool:
    try:
        current_device()
    except DeviceError:
        return False
    return True
