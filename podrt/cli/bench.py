"""``podrt bench``: measure suites of hybrid batches, compare results, draw figures."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from podrt.bench import results as results_files
from podrt.bench.case import Case
from podrt.bench.compare import compare, comparison_lines, comparison_table
from podrt.bench.dram import dram_table, measure_dram
from podrt.bench.environment import describe, gpu_slug, with_ceilings
from podrt.bench.host import BARS_US, HOST_SUITE, host_environment, measure_host
from podrt.bench.host_rows import host_table, replay_lines
from podrt.bench.peers import parse_peers
from podrt.bench.plot import plot_figures
from podrt.bench.report import LEGEND, failure_lines, result_table
from podrt.bench.runner import Outcome, run_cases
from podrt.bench.suites import Suite, load_suite, suite_names
from podrt.bench.summary import headlines, summarise
from podrt.cli._output import console, progress
from podrt.cli.bench_serving import serving
from podrt.gpu.device import current_device, load_cupy
from podrt.workloads.files import named_by

_RESULTS = Path("bench") / "results"
#: Suite that the figures are drawn from.
_FIGURES_SUITE = "paper"
#: Exit code of a run that stopped at its time limit.
_INCOMPLETE = 3

app = typer.Typer()
#: What follows the engine's name is read by the benchmark, its --help too.
app.command(
    "serving",
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    },
)(serving)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="balanced, features, paper, peers, solo, traces, or a TOML file; repeatable. "
            "Default: all of these. host: time of plan, run and replays on the host's clock."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="SUBSTRING", help="Only cases whose name has it.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every point of the paper, not the stated subset.")
    ] = False,
    peers: Annotated[
        str | None,
        typer.Option(help="fa3,flashinfer or none. Default: those that are installed."),
    ] = None,
    trace_dir: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of traces (CSV) for the suite."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of results. Default: bench/results/GPU."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what the results hold; measure the rest.")
    ] = False,
    limit_s: Annotated[
        float | None, typer.Option(min=0, help="Start no case after so many seconds.")
    ] = None,
    dram: Annotated[
        bool,
        typer.Option(
            "--dram", help="Count the bytes through DRAM by Nsight Compute; time nothing."
        ),
    ] = False,
    list_cases: Annotated[
        bool, typer.Option("--list", help="Print the cases and measure nothing.")
    ] = False,
    compare_files: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Show what changed from A to B."),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the figures of results; measure nothing.")
    ] = False,
) -> None:
    """Measure hybrid batches: podrt's choice, its other policies, its serial form, and peers.

    All contenders of a case are timed in turns with a cold L2 cache, after their results were
    checked against float64. Results are saved after every case, so that nothing is lost when a run
    is stopped; `--resume` continues.

    Exit code: 0 when all cases were measured, 3 when the time limit came first. A contender that
    fails is part of the results.
    """
    if context.invoked_subcommand is not None:
        return
    if compare_files is not None:
        _compare(*compare_files)
        return
    if plot:
        _plot(_results_folder(out))
        return
    if suite and HOST_SUITE in suite:
        if len(suite) > 1 or only or resume or list_cases or dram:
            raise ValueError(f"--suite {HOST_SUITE}: is measured alone and whole; give only --out")
        _run_host(out)
        return
    chosen = [
        _narrowed(load_suite(name, full=full, trace_dir=trace_dir), only)
        for name in suite or suite_names()
    ]
    if list_cases:
        for name in (case.name for each in chosen for case in each.cases):
            typer.echo(name)
        return
    if dram:
        _run_dram([case for each in chosen for case in each.cases], out)
        return
    deadline_s = None if limit_s is None else time.monotonic() + limit_s
    raise typer.Exit(_run(chosen, parse_peers(peers), out, only, resume, deadline_s))


def _narrowed(suite: Suite, only: str | None) -> Suite:
    cases = tuple(case for case in suite.cases if only is None or only in case.name)
    return Suite(suite.name, suite.description, cases)


def _run(
    suites: list[Suite],
    peers: list[str],
    out: Path | None,
    only: str | None,
    resuming: bool,
    deadline_s: float | None,
) -> int:
    device = current_device()
    folder = out or _RESULTS / gpu_slug(device.name)
    suites = [suite for suite in suites if suite.cases]
    if not suites:
        raise ValueError(f"only={only!r}: no case has that in its name; see podrt bench --list")
    paths = {suite.name: folder / f"{suite.name}.json" for suite in suites}
    kept = [path for path in paths.values() if only and not resuming and path.exists()]
    if kept:
        raise ValueError(
            f"--only would replace {kept[0]} by a part of it: add --resume, or another --out"
        )
    missing = 0
    with load_cupy().cuda.Stream(non_blocking=True):
        command = shlex.join(["podrt", *sys.argv[1:]])
        environment = {**with_ceilings(describe(device, peers)), "command": command}
        for suite in suites:
            with _bar(suite) as advance:
                outcome = run_cases(
                    suite.cases,
                    paths[suite.name],
                    environment,
                    peers=peers,
                    resuming=resuming,
                    deadline_s=deadline_s,
                    on_case=advance,
                )
            _show(suite, outcome, paths[suite.name])
            missing += len(outcome.missing)
    return _INCOMPLETE if missing else 0


def _run_host(out: Path | None) -> None:
    device = current_device()
    path = (out or _RESULTS / gpu_slug(device.name)) / f"{HOST_SUITE}.json"
    environment = {**host_environment(device), "command": shlex.join(["podrt", *sys.argv[1:]])}
    rows = measure_host(lambda row: console(stderr=True).print(row, markup=False))
    results_files.write_rows(rows, environment, path)
    printer = console()
    printer.print(host_table(rows, BARS_US))
    for line in (*replay_lines(rows), f"CPU: {environment['cpu']}.", f"Saved to {path}."):
        printer.print(line, markup=False)


def _run_dram(cases: list[Case], out: Path | None) -> None:
    device = current_device()
    path = (out or _RESULTS / gpu_slug(device.name)) / "dram.json"
    environment = {**describe(device, []), "command": shlex.join(["podrt", *sys.argv[1:]])}
    rows = measure_dram(cases)
    results_files.write_rows(rows, environment, path)
    printer = console()
    printer.print(dram_table(rows))
    printer.print(f"Saved to {path}.", markup=False)


@contextmanager
def _bar(suite: Suite) -> Iterator[Any]:
    with progress(f"suite {suite.name}", len(suite.cases)) as advance:
        yield advance


def _show(suite: Suite, outcome: Outcome, path: Path) -> None:
    printer = console()
    results = outcome.results
    printer.print(result_table(results, f"{suite.name}: {suite.description}"))
    lines = [LEGEND, *headlines(summarise(results.rows)), *failure_lines(results)]
    if results.rows:
        lines.append(f"Saved to {path}.")
    if outcome.missing:
        lines.append(f"Not measured within the time limit: {', '.join(outcome.missing)}.")
    for line in lines:
        printer.print(line, markup=False)


def _compare(before: Path, after: Path) -> None:
    comparison = compare(_results("--compare", before), _results("--compare", after))
    printer = console()
    printer.print(comparison_table(comparison))
    for line in comparison_lines(comparison):
        printer.print(line, markup=False)


def _results(option: str, path: Path) -> results_files.Results:
    with named_by(option, path):
        return results_files.load(path)


def _results_folder(out: Path | None) -> Path:
    """Return the folder to draw from: the given one, or the only one there is."""
    if out is not None:
        return out
    found = sorted(path.parent for path in _RESULTS.glob(f"*/{_FIGURES_SUITE}.json"))
    if len(found) != 1:
        which = f"several: {', '.join(map(str, found))}" if found else "none"
        raise ValueError(
            f"results of suite {_FIGURES_SUITE} in {_RESULTS}: {which}; name a folder with --out"
        )
    return found[0]


def _plot(folder: Path) -> None:
    results = _results("--out", folder / f"{_FIGURES_SUITE}.json")
    paths, skipped = plot_figures(results, folder / "figures")
    for path in paths:
        typer.echo(path)
    if skipped:
        console(stderr=True).print(f"no data for {', '.join(skipped)}", style="yellow")
