"""``podrt explore check``: variants against float64 on batches at the edges of their tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from rich.text import Text

from podrt.bench.check import HEADS, Check, Subject, check_all
from podrt.bench.sweep.axes import combinations, parse_axes
from podrt.cli._building import build_all
from podrt.cli._layer import LayerDtype, LayerHeadDim, LayerPageSize, LayerVHeadDim, layer_of
from podrt.cli._options import JsonOption, WordsArgument
from podrt.cli._output import console, print_json, progress, table
from podrt.cli._unused import LAYER, refuse_given
from podrt.errors import UnsupportedConfigError
from podrt.explore.names import alias_of
from podrt.explore.select import select
from podrt.gpu.device import DeviceInfo, current_device
from podrt.policy.schedule import Scheduler
from podrt.spec.attention import AttentionSpec

#: Exit code where a variant is not right.
_WRONG = 1
_STYLES = {"right": "green", "wrong": "bold red", "failed": "red"}


def check(
    context: typer.Context,
    words: WordsArgument = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="Check fused kernels with other tiles, as of podrt explore sweep; repeatable.",
        ),
    ] = None,
    head_dim: LayerHeadDim = 128,
    v_head_dim: LayerVHeadDim = None,
    page_size: LayerPageSize = "16",
    dtype: LayerDtype = "bfloat16",
    as_json: JsonOption = False,
) -> None:
    """Check this GPU's variants against float64, output and LSE, at the edges of their tiles.

    Each runs batches one below, at and above its tiles, pages and splits, with groups of 1, 4 and 6
    query heads. Layer options are for --axis alone. Examples:

    podrt explore check pod hopper bf16 page16

    podrt explore check --axis family=hopper --axis prefill_tile_keys=64,96,128

    Exit code: 0 if all are right, 1 if not.
    """
    if not axis:
        refuse_given(
            context, LAYER, "for the layer of --axis; without it words say what is checked"
        )
    gpu = current_device()
    if axis:
        if words:
            raise ValueError("pass words or --axis, not both")
        layer = layer_of(
            "{}/{}".format(*HEADS[1]), head_dim, page_size, dtype, v_head_dim=v_head_dim
        )
        subjects = _of_axes(axis, layer, gpu)
    else:
        found = select(words or [], archs=[gpu.arch.name])
        subjects = [Subject(alias_of(variant), variant) for variant in found]
    build_all([subject.variant for subject in subjects])
    with progress("checking", len(subjects)) as advance:
        checks = check_all(subjects, gpu, lambda _: advance())
    if as_json:
        print_json([each.to_dict() for each in checks])
    else:
        _print(checks)
    raise typer.Exit(0 if all(each.status == "right" for each in checks) else _WRONG)


def _of_axes(axes: list[str], layer: AttentionSpec, gpu: DeviceInfo) -> list[Subject]:
    """Return the fused kernel of each combination that can be; print why others cannot."""
    grid, skipped = combinations(parse_axes(axes))
    lines = [f"{each.combination.name}: {each.reason}" for each in skipped]
    subjects = []
    for each in grid:
        try:
            policy = each.policy()
            scheduler = Scheduler(layer, gpu, policy)
            (fused,) = scheduler.captured(scheduler.decode_rows_for(1))[:1]
        except UnsupportedConfigError as error:
            lines.append(f"{each.name}: {error}")
        else:
            if fused.family == "hopper":  # or batches might want another tile
                policy = replace(policy, decode_rows=fused.decode_rows)
            subjects.append(Subject(each.name, fused, policy))
    for line in lines:
        console(stderr=True).print(f"skipped {line}", markup=False)
    if not subjects:
        raise ValueError("--axis: no combination can be; the lines above say why")
    return subjects


def _print(checks: list[Check]) -> None:
    numbers = ("error", "allowed", "LSE error", "rows")
    result = table("variant", "status", *numbers, "where, or why", numbers=numbers)
    for each in sorted(checks, key=lambda check: check.status == "right"):
        result.add_row(
            Text(each.name),
            Text(each.status, _STYLES[each.status]),
            _number(each.max_rel_err),
            _number(each.tolerance),
            _number(each.lse_error),
            str(each.rows),
            Text(each.reason or each.where or ""),
        )
    console().print(result)
    right = sum(each.status == "right" for each in checks)
    console(stderr=True).print(f"{right} of {len(checks)} are right")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
