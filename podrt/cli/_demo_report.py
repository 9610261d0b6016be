"""What ``podrt demo`` prints, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from podrt.bench.fused import Outcome
from podrt.cli._output import console, print_json, table
from podrt.explore.dry_run import DRY_RUN_TOLERANCE, DryRun
from podrt.gpu.device import DeviceInfo
from podrt.workloads.accuracy import LSE_TOLERANCE, tolerance_of
from podrt.workloads.random_batch import Geometry


def report(
    outcomes: list[Outcome],
    device: DeviceInfo,
    geometry: Geometry,
    policies: tuple[str, str],
    as_json: bool,
) -> None:
    """Print what the batches gave on a GPU under the policies ``(fused, serial)``."""
    if as_json:
        print_json(_as_dict(outcomes, device, geometry, policies))
        return
    out = console()
    out.print(f"{device.name} ({device.arch.name}), {_in_words(geometry)}")
    names = list(dict.fromkeys(outcome.variants for outcome in outcomes))
    out.print(_table(outcomes, names, policies))
    for number, variants in enumerate(names, start=1):
        out.print(f"variant {number}: {', '.join(variants)}")
    out.print(_coverage(outcomes, geometry))
    failed = sum(not outcome.ok for outcome in outcomes)
    verdict = f"{failed} of {len(outcomes)} batches are WRONG." if failed else "All batches agree."
    out.print(verdict, style="bold red" if failed else "green")


def _as_dict(
    outcomes: list[Outcome],
    device: DeviceInfo,
    geometry: Geometry,
    policies: tuple[str, str],
) -> dict[str, Any]:
    return {
        "device": device.name,
        "arch": device.arch.name,
        "geometry": asdict(geometry),
        "policy": policies[0],
        "serial_policy": policies[1],
        "tolerance": tolerance_of(geometry.dtype),
        "lse_tolerance": LSE_TOLERANCE,
        "batches": [{**asdict(outcome), "speedup": outcome.speedup} for outcome in outcomes],
    }


def _coverage(outcomes: list[Outcome], geometry: Geometry) -> str:
    checked = sum(outcome.checked_rows for outcome in outcomes)
    total = sum(outcome.tokens for outcome in outcomes)
    return (
        f"Checked {checked} of {total} query rows, of every request, all heads, against float64.\n"
        f"error: largest |out - reference| / largest |reference| of the row; tolerance "
        f"{tolerance_of(geometry.dtype):.2g}.\n"
        f"lse err: largest |lse - reference|; tolerance {LSE_TOLERANCE:.0e}."
    )


def _table(
    outcomes: list[Outcome], names: list[tuple[str, ...]], policies: tuple[str, str]
) -> Table:
    families = " and ".join(dict.fromkeys(outcome.family for outcome in outcomes))
    title = f'{families} kernels, policy "{policies[0]}" against "{policies[1]}"'
    numbers = ("prefills", "decodes", "tokens", "fused us", "serial us", "speed-up")
    columns = (*numbers, "error", "lse err")
    rows = table(*columns, "variant", title=title, numbers=columns)
    for outcome in outcomes:
        style = "" if outcome.ok else "bold red"
        rows.add_row(
            str(outcome.prefills),
            str(outcome.decodes),
            str(outcome.tokens),
            f"{outcome.fused_us:.1f}",
            f"{outcome.serial_us:.1f}",
            f"{outcome.speedup:.2f}x",
            Text(f"{outcome.error:.1e}", style),
            Text(f"{outcome.lse_error:.1e}", style),
            str(names.index(outcome.variants) + 1),
        )
    return rows


def report_dry_run(result: DryRun, reason: str, as_json: bool) -> None:
    """Print what could be checked without a GPU, and why there is none."""
    if as_json:
        print_json({"device": None, "reason": reason, **asdict(result)})
        return
    out = console()
    out.print("No GPU was found, so nothing was launched and there are no times.", style="yellow")
    out.print(f"({reason})", markup=False)
    out.print(
        f"Compiled {result.variants} variants ({' and '.join(result.families)} kernels) for "
        f"{result.arch}: {result.compiled} now, {result.variants - result.compiled} from the cache."
    )
    out.print(
        f"Planned a batch of {result.prefills} prefills and {result.decodes} decodes, "
        f"{result.tokens} tokens, for each family, and walked the plans in NumPy as kernels do:"
    )
    style = "green" if result.ok else "bold red"
    out.print(
        f"largest error against the float64 reference {result.error:.1e}, "
        f"tolerance {DRY_RUN_TOLERANCE:.0e}",
        style=style,
    )


def _in_words(geometry: Geometry) -> str:
    return (
        f"{geometry.num_qo_heads} query and {geometry.num_kv_heads} KV heads of "
        f"{geometry.head_dim}, {geometry.dtype}, pages of {geometry.page_size}"
    )
