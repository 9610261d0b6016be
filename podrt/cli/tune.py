"""``podrt tune``: measure this GPU, and keep what was found for it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from podrt.cli._building import build_all
from podrt.cli._options import JsonOption
from podrt.cli._output import console, print_json, progress, table
from podrt.gpu.device import DeviceInfo, current_device
from podrt.policy.store import require_path
from podrt.policy.tuned_costs import save_costs
from podrt.tune.costs import CostFit, fit_costs, require_model, variants_of
from podrt.tune.fit import constants
from podrt.tune.launches import designed_cases
from podrt.tune.measure import measure_policies


def tune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure and show, but keep nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the cost model to this GPU: less than a minute of launches, then some arithmetic.

    What predictions are made from is kept for this GPU, its driver and this version of podrt, in
    the folder `tuned` beside the compiled kernels, and counts in processes that start later. It is
    kept only where it predicts launches that it was not fitted to better than what podrt ships.

    Exit code: 0 also where the shipped record is the better one.
    """
    gpu = current_device()
    _tune_costs(gpu, dry_run, as_json)


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
