"""``podrt explore trace``: what each SM does when, measured or simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from podrt.bench.case import Case
from podrt.bench.environment import describe
from podrt.bench.results import write_whole
from podrt.bench.trace import trace_case
from podrt.cli._layer import (
    GpuOption,
    LayerDtype,
    LayerHeadDim,
    LayerHeads,
    LayerPageSize,
    LayerSoftCap,
    LayerVHeadDim,
    LayerWindow,
    PolicyOption,
    gpu_of,
    layer_of,
)
from podrt.cli._options import JsonOption
from podrt.cli._output import print_json, require_figure
from podrt.errors import DeviceError
from podrt.explore.record import TimelineRecord, TracedRun
from podrt.explore.timeline import plot_timeline, simulate
from podrt.gpu.device import current_device
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler
from podrt.spec.attention import AttentionSpec
from podrt.workloads.lengths import batch_of_lengths, parse_lengths


def trace(
    batch: Annotated[
        str | None, typer.Argument(help='Such as "2048@16384 + 64x16384"; or --batch.')
    ] = None,
    batch_option: Annotated[
        str | None, typer.Option("--batch", metavar="BATCH", help="The same, as an option.")
    ] = None,
    heads: LayerHeads = "32/8",
    head_dim: LayerHeadDim = 128,
    v_head_dim: LayerVHeadDim = None,
    page_size: LayerPageSize = "16",
    dtype: LayerDtype = "bfloat16",
    window_left: LayerWindow = None,
    soft_cap: LayerSoftCap = None,
    policy: PolicyOption = "auto",
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="POLICY", help="The same under this policy too; repeatable."),
    ] = None,
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
        typer.Option(dir_okay=False, help="Write JSON for chrome://tracing and Perfetto."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Write all of it, --beside too, as one small JSON for podrt explore report.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each SM does when: measured on this GPU, or simulated by the cost model.

    Without a GPU, with --simulated, and for a GPU that --gpu names, it is the model, and says so.
    What is measured is an instrumented build of the same kernels, whose overhead is printed.
    Examples:

    podrt explore trace --batch "2048@16384 + 64x16384" --heads 32/8 -o trace.json -o trace.svg

    podrt explore trace "2048@16384 + 64x16384" --gpu h100 --plot trace.svg

    podrt explore trace "2048@16384 + 64x16384" --beside serial --record timeline.json
    """
    if (batch is None) == (batch_option is None):
        raise ValueError('pass a batch once: "2048@16384 + 64x16384", or --batch "..."')
    text = batch or batch_option or ""
    figures = [each for each in (plot, *(out or [])) if each and each.suffix != ".json"]
    for figure in figures:
        require_figure(figure)
    layer = layer_of(heads, head_dim, page_size, dtype, window_left, soft_cap, v_head_dim)
    measured = gpu is None and not simulated and _is_there_a_gpu()
    run_one = _measured if measured else _simulated
    runs = [run_one(text, layer, each, gpu) for each in (policy, *(beside or []))]
    timeline = runs[0].timeline
    for path in [chrome, *(each for each in out or [] if each.suffix == ".json")]:
        if path is not None:
            write_whole(json.dumps(timeline.chrome_trace()), path)
    for figure in figures:
        plot_timeline(timeline, f"{text}, {heads} heads, {policy}", figure)
    if record is not None:
        environment = describe(current_device(), []) if measured else {}
        found = TimelineRecord(text, _fields_of(layer), tuple(runs), environment)
        write_whole(found.to_json(), record)
    if as_json:
        first, *others = (_json_of(run) for run in runs)
        print_json({**first, "beside": others} if others else first)
        return
    for run in runs:
        _print_run(text if run is runs[0] else f"{text}, {run.policy}", run)


def _measured(batch: str, layer: AttentionSpec, policy: str, _gpu: str | None) -> TracedRun:
    return trace_case(Case.of(parse_lengths(batch), layer), policy)


def _simulated(batch: str, layer: AttentionSpec, policy: str, gpu: str | None) -> TracedRun:
    scheduler = Scheduler(layer, gpu_of(gpu), parse_policy(policy))
    schedule = scheduler.schedule(batch_of_lengths(parse_lengths(batch), layer.page_size))
    names = tuple(variant.name for variant in schedule.variants)
    return TracedRun(policy, names, simulate(schedule, scheduler.gpu))


def _fields_of(layer: AttentionSpec) -> dict[str, Any]:
    narrow = {} if layer.v_head_dim is None else {"v_head_dim": layer.v_head_dim}
    return {
        "num_qo_heads": layer.num_qo_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        **narrow,
        "page_size": layer.page_size,
        "dtype": layer.dtype,
        "window_left": layer.mask.window_left,
        "logits_soft_cap": layer.logits_soft_cap,
    }


def _json_of(run: TracedRun) -> dict[str, Any]:
    timeline = run.timeline
    found = {"source": timeline.source, "gpu": timeline.gpu, "policy": run.policy}
    if run.overhead is None:
        return {**found, **timeline.summary()}
    times = {"plain_us": run.plain_us, "traced_us": run.traced_us}
    return {**found, **timeline.summary(), **times, "lost_events": timeline.lost_events}


def _print_run(batch: str, run: TracedRun) -> None:
    timeline = run.timeline
    typer.echo(f"{timeline.source}, {timeline.gpu}: {batch}")
    for name, value in timeline.summary().items():
        is_share = name in ("prefill_busy", "decode_busy", "both_busy", "idle")
        typer.echo(f"  {name:13s} {f'{value:.0%}' if is_share else f'{value:.0f}'}")
    if run.overhead is not None:
        typer.echo(
            f"overhead of the instrumented build: {run.overhead:+.1%} "
            f"({run.plain_us:.1f} us -> {run.traced_us:.1f} us)"
        )
    if timeline.lost_events:
        typer.echo(f"{timeline.lost_events} events found no room: spans are missing", err=True)


def _is_there_a_gpu() -> bool:
    try:
        current_device()
    except DeviceError:
        return False
    return True
