"""What a sweep shows while it runs, and of its records afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from podrt.bench.progress import progress_bars
from podrt.bench.roofline import plot_roofline
from podrt.bench.sweep.heatmap import heat_maps
from podrt.bench.sweep.heatmap_figure import draw_heat_map
from podrt.bench.sweep.records import Result, Sweep
from podrt.bench.sweep.roofline import roofline
from podrt.bench.sweep.runner import OnResult
from podrt.bench.sweep.summary import axis_effects, summarise, variant_summaries
from podrt.bench.sweep.tables import (
    axis_table,
    case_table,
    heat_map_table,
    skip_lines,
    variant_table,
    wrong_table,
)
from podrt.cli._output import console

_FORMATS = ("png", "svg")


@contextmanager
def sweep_progress(total: int, kept: int) -> Iterator[OnResult]:
    """Show progress with the time left; call what it yields with every result.

    Parameters
    ----------
    total : int
        Results that there will be.
    kept : int
        Of those, what is there already and comes first.
    """
    out = console(stderr=True)
    with progress_bars(out, time_left=True) as bars:
        task = bars.add_task("sweep", total=total, completed=kept)
        left_out = kept

        def on_result(result: Result) -> None:
            nonlocal left_out
            if left_out:  # they would make the rest look as fast as reading a file
                left_out -= 1
                return
            bars.update(task, advance=1, description=result.case)
            if result.status != "ok":
                out.print(
                    f"{result.variant} on {result.case}: {result.status}, {result.reason}",
                    style="red",
                    markup=False,
                )

        yield on_result


def show(sweep: Sweep, maps: Sequence[str]) -> None:
    """Print tables, and heat maps of some axes, of each GPU of a sweep; then what was skipped."""
    out = console()
    for gpu in sweep.gpus:
        cases = summarise(sweep.on(gpu))
        out.print(case_table(cases, f"batches, {gpu}"))
        out.print(variant_table(variant_summaries(cases), "variants, by geomean of time / auto"))
        effects = axis_effects(cases)
        if effects:
            out.print(axis_table(effects, "values of axes, by geomean of the best with each"))
        wrong = wrong_table(cases)
        if wrong is not None:
            out.print(wrong)
        for heat_map in heat_maps(cases, gpu, maps):
            out.print(heat_map_table(heat_map))
            for line in heat_map.notes:
                out.print(line, markup=False)
            out.print()
    for line in skip_lines(sweep.skips):
        out.print(line, markup=False)


def draw(sweep: Sweep, folder: Path, maps: Sequence[str]) -> list[Path]:
    """Draw heat maps of some axes and the roofline as PNG and SVG; return the files."""
    paths: list[Path] = []
    for number, gpu in enumerate(sweep.gpus):
        own = sweep.on(gpu)
        suffix = f"-{number}" if number else ""
        for heat_map in heat_maps(summarise(own), gpu, maps):
            name = heat_map.title.partition(",")[0].replace(" ", "-") + suffix
            for ending in _FORMATS:
                paths.append(folder / f"{name}.{ending}")
                draw_heat_map(heat_map, paths[-1])
        if own.environment.get("ceilings"):
            points = roofline(own)
            for ending in _FORMATS:
                paths.append(folder / f"roofline{suffix}.{ending}")
                plot_roofline(points, f"roofline, {gpu}", paths[-1])
    return paths
