"""``podrt doctor``: can this machine compile and run kernels, and if not, what is missing."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.text import Text

from podrt.cli._health import Finding, can_run, findings
from podrt.cli._options import JsonOption
from podrt.cli._output import console, print_json, table

_MARKS = {
    "ok": ("ok", "green"),
    "missing": ("missing", "bold red"),
    "optional": ("absent", "yellow"),
}


def doctor(as_json: JsonOption = False) -> None:
    """Show what podrt finds here, what is missing, and how to install it.

    Exit code: 0 when kernels can be compiled and run, 1 when something they need is missing
    (compiling alone works without a GPU; see `podrt warmup --arch`).
    """
    found = findings()
    healthy = can_run(found)
    if as_json:
        print_json({"can_run": healthy, "findings": [asdict(finding) for finding in found]})
    else:
        _print(found, healthy)
    raise typer.Exit(0 if healthy else 1)


def _print(found: list[Finding], healthy: bool) -> None:
    rows = table("what", "state", "detail")
    for finding in found:
        text, style = _MARKS[finding.state]
        rows.add_row(finding.name, Text(text, style), Text(finding.detail))
    console().print(rows)
    for finding in found:
        if finding.fix:
            console().print(f"{finding.name}: {finding.fix}", markup=False)
    verdict = "podrt can run kernels here." if healthy else "podrt cannot run kernels here."
    console().print(verdict, style="green" if healthy else "red")
