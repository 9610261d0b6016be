"""``podrt explore sweep``: ways to run batches, checked and measured; replay without a GPU."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from podrt.bench.environment import describe, gpu_slug, with_ceilings
from podrt.bench.gpu_error import gpu_error
from podrt.bench.sweep.axes import AXES, combinations, parse_axes
from podrt.bench.sweep.definition import (
    SAMPLES,
    Definition,
    cases_of,
    definition_names,
    read_definition,
    suite_cases,
)
from podrt.bench.sweep.heatmap import DRAWN_AXES, USUAL_AXES, require_axes
from podrt.bench.sweep.measure import gpu_bench
from podrt.bench.sweep.points import Point, points_of
from podrt.bench.sweep.records import Journal, Skip, Sweep, load
from podrt.bench.sweep.runner import Outcome, Runner, missing_of
from podrt.bench.sweep.tables import export, require_exportable, skip_lines
from podrt.cli._layer import (
    BatchesOption,
    BudgetOption,
    GpuOption,
    LayerDtype,
    LayerHeadDim,
    LayerHeads,
    LayerPageSize,
    LayerVHeadDim,
    MaxKvTokensOption,
    batches_of_trace,
    gpu_of,
    layer_of,
)
from podrt.cli._output import console, progress
from podrt.cli._sweep_display import draw, show, sweep_progress
from podrt.cli._unused import BATCHES, LAYER, refuse_given
from podrt.errors import CompileError
from podrt.gpu.device import DeviceInfo, current_device, load_cupy
from podrt.jit import build_many
from podrt.kernels.families import source_of
from podrt.workloads.lengths import describe_lengths

_RESULTS = Path("bench") / "results"
#: Exit code of a sweep that was interrupted.
_INCOMPLETE = 3


def sweep(
    context: typer.Context,
    definition: Annotated[
        str | None,
        typer.Argument(help="A sweep that podrt ships, or a TOML file. Default: --axis, --batch."),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="Values of a field of podrt.Policy, such as decode_only_sms=0,8,16; repeatable.",
        ),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(help='Such as "2048@16384 + 64x16384"; repeatable.'),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="The batches of a suite of podrt bench, or of a TOML file.")
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="SUBSTRING", help="Of a suite, only cases whose name has it.")
    ] = "",
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV of requests, whose batches to take."),
    ] = None,
    budget: BudgetOption = 512,
    batches: BatchesOption = 32,
    max_kv_tokens: MaxKvTokensOption = 65536,
    heads: LayerHeads = "32/8",
    head_dim: LayerHeadDim = 128,
    v_head_dim: LayerVHeadDim = None,
    page_size: LayerPageSize = "16",
    dtype: LayerDtype = "bfloat16",
    random: Annotated[
        int | None,
        typer.Option(min=1, help="So many of the combinations, chosen at random, not all."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --random.")] = 0,
    samples: Annotated[
        int | None, typer.Option(min=1, help=f"Of each timing. Default: {SAMPLES}.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Records to go on from: .jsonl. Default: bench/results/GPU/sweep/NAME.jsonl.",
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Show a file of records. Needs no GPU."),
    ] = None,
    exports: Annotated[
        list[Path] | None,
        typer.Option("--export", help="Write all of it as .json, .csv or .md; repeatable."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for heat maps and roofline, PNG and SVG."),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", help=f"Heat maps to show: {', '.join(DRAWN_AXES)}; repeatable."),
    ] = None,
    list_points: Annotated[
        bool,
        typer.Option("--list", help="Print what would be measured or skipped. Needs no GPU."),
    ] = False,
    gpu: GpuOption = None,
) -> None:
    """Measure variants over batches: how SMs are shared, tiles, rings, splits, families.

    Every variant is compared with float64 first; one that is wrong is shown as wrong, and not
    ranked. Those that are right are timed in turns with podrt's automatic choice, with a cold L2
    cache. Combinations that a kernel's config refuses are skipped, with the reason.

    Records are kept one by one: after Ctrl-C, or with more axes or batches, the same command
    measures only what is new. Examples:

    podrt explore sweep --axis decode_only_sms=0,4,8,16 --axis family=hopper
    --batch "2048@16384 + 64x16384"

    podrt explore sweep --replay sweep.jsonl --figures figures --export sweep.md

    Exit code: 0 when all was measured, also where a variant was wrong; 3 after Ctrl-C; 4 when a
    variant did not end (the same command then goes on without it).
    """
    for path in exports or ():
        require_exportable(path)
    require_axes(maps or ())
    if replay is not None:
        if definition or axis or batch or suite or trace or out or list_points:
            raise ValueError(
                "--replay: shows a file as it is; give only --export, --figures and --map"
            )
        measured = (*LAYER, *BATCHES, "only", "random", "seed", "samples", "gpu")
        refuse_given(context, measured, "for what is measured; leave them out with --replay")
        _finish(_replayed(replay), exports, figures, maps)
        return
    if random is None:
        refuse_given(context, ("seed",), "for --random; pass it, or leave it out")
    if definition is not None:
        if axis or batch or suite or trace:
            raise ValueError("pass a definition, or --axis and batches, not both")
        refuse_given(
            context,
            (*LAYER, *BATCHES, "only"),
            "a definition says its batches and layers itself; leave them out, or edit a copy of it",
        )
        wanted = read_definition(definition)
    elif axis and (batch or suite or trace):
        _require_used(context, batch=batch, suite=suite, trace=trace)
        layer = layer_of(heads, head_dim, page_size, dtype, v_head_dim=v_head_dim)
        texts = list(batch or ())
        if trace is not None:
            found_batches = batches_of_trace(
                trace, budget=budget, batches=batches, max_kv_tokens=max_kv_tokens
            )
            texts += map(describe_lengths, found_batches)
        cases = cases_of(texts, layer) + (suite_cases(suite, only) if suite else ())
        grid, refused = combinations(parse_axes(axis))
        wanted = Definition("sweep", "", tuple(grid), tuple(refused), cases)
    else:
        raise ValueError(
            f"pass a definition ({', '.join(definition_names())}, or a TOML file), or --axis and "
            f"--batch, --suite or --trace; axes are {', '.join(AXES)}"
        )
    if random is not None:
        wanted = wanted.sampled(random, seed)
    if samples is not None:
        wanted = wanted.with_samples(samples)
    if list_points:
        _list(*points_of(wanted, gpu_of(gpu)))
        return
    if gpu is not None:
        raise ValueError("--gpu: is for --list alone; a sweep measures the current GPU")
    device = current_device()
    path = out or _RESULTS / gpu_slug(device.name) / "sweep" / f"{wanted.name}.jsonl"
    outcome = _measure(wanted, device, path)
    _finish(load(path), exports, figures, maps)
    lines = [f"{outcome.measured} measured, {outcome.kept} kept from before, in {path}."]
    if outcome.interrupted:
        lines.append("Interrupted: the same command goes on.")
    for line in lines:
        console(stderr=True).print(line, markup=False)
    raise typer.Exit(_INCOMPLETE if outcome.interrupted else 0)


def _require_used(
    context: typer.Context, *, batch: list[str] | None, suite: str | None, trace: Path | None
) -> None:
    """Refuse options of batches that would be ignored."""
    if not (batch or trace):
        refuse_given(context, LAYER, "for the layer of --batch or --trace; a suite says its own")
    if suite is None:
        refuse_given(context, ("only",), "for cases of --suite; pass it, or leave it out")
    if trace is None:
        refuse_given(context, BATCHES, "for batches of --trace; pass it, or leave them out")


def _replayed(path: Path) -> Sweep:
    """Show the results of a file as if they were measured now."""
    found = load(path)
    if not (found.results or found.skips):
        raise ValueError(f"--replay {path}: has no records; measure some with --out {path}")
    with sweep_progress(len(found.results), 0) as on_result:
        for result in found.results:
            on_result(result)
    return found


def _measure(definition: Definition, device: DeviceInfo, path: Path) -> Outcome:
    points, skips = points_of(definition, device)
    with Journal(path) as journal:
        if journal.was_torn:
            console(stderr=True).print(f"{path}: cut off a torn last line", style="yellow")
        for skip in skips:
            journal.add(skip)
        missing = missing_of(points, journal.sweep)
        _compile(missing)
        environment = _environment(device, definition) if missing else {}
        name = hashlib.sha256(json.dumps(environment).encode()).hexdigest()[:8]
        if missing:
            journal.add_environment(name, environment)
        with sweep_progress(len(points), len(points) - len(missing)) as on_result:
            runner = Runner(
                journal, name, gpu_bench, gpu_error, definition.samples, on_result=on_result
            )
            return runner.run(points)


def _environment(device: DeviceInfo, definition: Definition) -> dict[str, Any]:
    with load_cupy().cuda.Stream(non_blocking=True):
        environment = with_ceilings(describe(device, []))
    del environment["peers"]
    command = shlex.join(["podrt", *sys.argv[1:]])
    return {**environment, "samples": definition.samples, "command": command}


def _compile(points: Sequence[Point]) -> None:
    """Compile all kernels side by side; what does not compile fails when it is run."""
    variants = dict.fromkeys(variant for point in points for variant in point.variants)
    sources = {variant.name: source_of(variant) for variant in variants}
    with progress("compiling", len(sources)) as advance:
        while sources:
            try:
                build_many(sources.values(), lambda _: advance())
                return
            except CompileError as error:
                del sources[error.name]


def _list(points: Sequence[Point], skips: Sequence[Skip]) -> None:
    for point in points:
        typer.echo(f"{point.case.name}: {point.name}")
    for line in skip_lines(skips):
        typer.echo(line)
    cases = len({point.case.name for point in points})
    kernels = len({variant for point in points for variant in point.variants})
    typer.echo(f"{len(points)} points of {cases} batches, {kernels} kernels", err=True)


def _finish(
    found: Sweep,
    exports: Sequence[Path] | None,
    figures: Path | None,
    maps: Sequence[str] | None,
) -> None:
    show(found, maps or USUAL_AXES)
    for path in exports or ():
        export(found, path)
    if figures is not None:
        for path in draw(found, figures, maps or USUAL_AXES):
            console(stderr=True).print(str(path), markup=False)
