"""``podrt tune``: measure this GPU, and keep what was found for it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated, Any

import typer

from podrt.cli._building import build_all
from podrt.cli._layer import (
    BatchesOption,
    BudgetOption,
    LayerDtype,
    LayerHeadDim,
    LayerHeads,
    LayerPageSize,
    LayerVHeadDim,
    MaxKvTokensOption,
    batches_of_trace,
    layer_of,
)
from podrt.cli._options import JsonOption
from podrt.cli._output import console, print_json, progress, table
from podrt.cli._unused import BATCHES, LAYER, refuse_given
from podrt.gpu.device import DeviceInfo, current_device
from podrt.policy.store import require_path
from podrt.policy.tuned_costs import save_costs
from podrt.policy.winners import RULES, Trial, save_trials
from podrt.spec.attention import AttentionSpec
from podrt.tune.buckets import bucket_cases, read_shapes, run_trials
from podrt.tune.costs import CostFit, fit_costs, require_model, variants_of
from podrt.tune.fit import constants
from podrt.tune.launches import designed_cases
from podrt.tune.measure import measure_policies

_HOW = "Policy(autotuned=True) in processes that start from now on."


def tune(
    context: typer.Context,
    shapes: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help='Batches to find policies for, one a line, such as "2048@16384 + 64x16384".',
        ),
    ] = None,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure and show, but keep nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure this GPU: fit the cost model to it, or find which policies win for given batches.

    Without --shapes and --trace: less than a minute of launches, then some arithmetic; kept only
    where it predicts launches that it was not fitted to better than what podrt ships.

    With one of them: batches that are alike share a bucket, in whose first one every candidate is
    timed. Policy(autotuned=True) then takes the winner for all batches of the bucket and that layer
    (--heads and so on). Example: podrt tune --trace requests.csv --heads 32/8

    Both are kept for this GPU, its driver and this version of podrt, in the folder `tuned` beside
    the compiled kernels, and count in processes that start later.

    Exit code: 0 also where the shipped record is the better one.
    """
    if shapes is not None and trace is not None:
        raise ValueError("pass --shapes or --trace, not both")
    if trace is None:
        refuse_given(context, BATCHES, "for batches of --trace; pass it, or leave them out")
    if shapes is None and trace is None:
        refuse_given(
            context, LAYER, "for the layer of --shapes or --trace; pass one, or leave them out"
        )
    if shapes is None and trace is None:
        _tune_costs(current_device(), dry_run, as_json)
        return
    layer = layer_of(heads, head_dim, page_size, dtype, v_head_dim=v_head_dim)
    if shapes is not None:
        lengths = read_shapes(shapes)
    else:
        assert trace is not None
        lengths = batches_of_trace(
            trace, budget=budget, batches=batches, max_kv_tokens=max_kv_tokens
        )
    _tune_policies(current_device(), layer, lengths, dry_run, as_json)


def _tune_costs(gpu: DeviceInfo, dry_run: bool, as_json: bool) -> None:
    require_model(gpu)
    if not dry_run:
        require_path("costs", gpu)
    cases = designed_cases()
    build_all(variants_of(cases, gpu))
    with progress("measuring", len(cases)) as advance:
        fit = fit_costs(gpu, measure_policies, cases=cases, on_case=advance)
    path = save_costs(gpu, fit.tuned) if fit.is_better and not dry_run else None
    if as_json:
        print_json(_described(fit, path))
    else:
        _print(fit, path, dry_run)


def _tune_policies(
    gpu: DeviceInfo,
    layer: AttentionSpec,
    lengths: list[list[tuple[int, int]]],
    dry_run: bool,
    as_json: bool,
) -> None:
    if not dry_run:
        require_path("winners", gpu)
    cases = bucket_cases(lengths, layer, gpu)
    if not cases:
        raise ValueError(
            "no batch has both prefill and decode: in one of a kind there is nothing to choose"
        )
    build_all(variants_of([each.case for each in cases], gpu))
    with progress("measuring", len(cases)) as advance:
        trials = run_trials(cases, measure_policies, advance)
    path = None if dry_run else save_trials(gpu, trials)
    if as_json:
        print_json(
            {
                "trials": [{**asdict(each), "winner": each.winner()} for each in trials],
                "kept": None if path is None else str(path),
            }
        )
    else:
        _print_trials(trials, len(lengths), path)


def _print_trials(trials: tuple[Trial, ...], batches: int, path: Path | None) -> None:
    out = console()
    numbers = ("rules us", "winner us", "gain")
    rows = table("bucket", "winner", *numbers, numbers=numbers)
    gains = []
    for trial in trials:
        rules_us, winner = trial.times_us[RULES], trial.winner()
        gains.append(rules_us / trial.times_us[winner])
        times = (f"{rules_us:.1f}", f"{trial.times_us[winner]:.1f}")
        rows.add_row(str(trial.bucket), winner, *times, _off(gains[-1]))
    out.print(rows)
    out.print(
        f"{batches} batches in {len(trials)} buckets of {trials[0].layer}; gain over the rules in "
        f"geomean {_off(geometric_mean(gains))}.",
        markup=False,
    )
    kept = "Not kept: a dry run." if path is None else f"Kept in {path}; used by " + _HOW
    out.print(kept, markup=False)


def _described(fit: CostFit, path: Path | None) -> dict[str, Any]:
    return {
        **asdict(fit.tuned),
        "shipped": asdict(fit.shipped),
        "errors": [asdict(each) for each in fit.errors],
        "is_better": fit.is_better,
        "kept": None if path is None else str(path),
    }


def _print(fit: CostFit, path: Path | None, dry_run: bool) -> None:
    out = console()
    values = table("constant", "shipped", "fitted", numbers=("shipped", "fitted"))
    for each in constants():
        name = each.name if each.at is None else f"{each.name}, head_dim {(64, 128)[each.at]}"
        values.add_row(name, f"{each.of(fit.shipped):.4g}", f"{each.of(fit.tuned.costs):.4g}")
    out.print(values)
    numbers = ("launches", "shipped", "fitted", "worst")
    errors = table("predictions of", *numbers, numbers=numbers)
    for row in fit.errors:
        factors = (_off(row.shipped), _off(row.fitted), _off(row.worst))
        errors.add_row(row.forms, str(row.launches), *factors)
    out.print(errors)
    tuned = fit.tuned
    out.print(
        f"Off by, in geomean, of launches not fitted to: {_off(tuned.held_out_error)}; with the "
        f"shipped record {_off(tuned.shipped_error)}."
    )
    out.print(_verdict(fit, path, dry_run), markup=False)


def _verdict(fit: CostFit, path: Path | None, dry_run: bool) -> str:
    if not fit.is_better:
        return "Not kept: the shipped record predicts better."
    if dry_run:
        return "Not kept: a dry run."
    return f"Kept in {path}; processes that start from now on use it."


def _off(factor: float) -> str:
    return f"{factor - 1:.1%}"
