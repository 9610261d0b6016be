"""A sweep as tables for a terminal, and as Markdown, CSV and JSON with the environment."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from podrt.bench.results import write_whole
from podrt.bench.sweep.heatmap import HeatMap, heat_maps
from podrt.bench.sweep.records import Result, Skip, Sweep
from podrt.bench.sweep.summary import (
    AxisEffect,
    CaseSummary,
    VariantSummary,
    axis_effects,
    summarise,
    variant_summaries,
)
from podrt.bench.tables import empty_table

#: Variants that tables for people show.
_SHOWN = 20

_COLUMNS = (
    "case",
    "variant",
    "side",
    "status",
    "time_us",
    "auto_us",
    "relative",
    "overlap",
    "predicted_us",
    "max_rel_err",
    "worst",
    "reason",
    "kernels",
    "lengths",
    "heads",
    "head_dim",
    "dtype",
    "page_size",
    "gpu",
    "driver",
    "podrt",
    "git_commit",
    "samples",
)


def case_table(cases: Sequence[CaseSummary], title: str) -> Table:
    """Return a line per case: the automatic choice, the fastest, and what lies between them."""
    return _table(_case_rows(cases), ("case", "best", "ties"), title)


def variant_table(variants: Sequence[VariantSummary], title: str) -> Table:
    """Return a line per variant, the best in geomean first."""
    return _table(_variant_rows(variants[:_SHOWN]), ("variant",), title)


def axis_table(effects: Sequence[AxisEffect], title: str) -> Table:
    """Return a line per value of an axis."""
    return _table(_axis_rows(effects), ("axis", "value"), title)


def wrong_table(cases: Sequence[CaseSummary]) -> Table | None:
    """Return a line per variant that was wrong, failed or hung; None without any."""
    rows = _wrong_rows(cases)
    return _table(rows, tuple(rows[0]), "not ranked") if rows else None


def skip_lines(skips: Sequence[Skip]) -> list[str]:
    """Return a line per skipped combination, with its reason."""
    return [f"skipped {s.variant}{f' on {s.case}' if s.case else ''}: {s.reason}" for s in skips]


def heat_map_table(heat_map: HeatMap) -> Table:
    """Return a map for the terminal: the fastest cells are bold, the automatic choice has a *."""
    table = empty_table(heat_map.title)
    table.add_column(heat_map.y_name)
    for x in heat_map.xs:
        table.add_column(x, justify="right", overflow="fold")
    for y, line in zip(heat_map.ys, heat_map.cells, strict=True):
        table.add_row(y, *(_cell_text(cell, heat_map) for cell in line))
    table.caption = f"{heat_map.value_name}; bold: the fastest, *: the automatic choice"
    return table


def export(sweep: Sweep, path: Path) -> None:
    """Write a sweep by the ending of a file's name: .json, .csv or .md.

    Raises
    ------
    ValueError
        It is another ending.
    """
    require_exportable(path)
    write_whole(_WRITERS[path.suffix](sweep), path)


def require_exportable(path: Path) -> None:
    """Raise ValueError unless a file's name ends as `export` can write it."""
    if path.suffix not in _WRITERS:
        raise ValueError(f"export={str(path)!r}: must end with one of {', '.join(_WRITERS)}")


def to_json(sweep: Sweep) -> str:
    """Return all there is as one JSON object: environments, results, skips, summaries, maps."""
    gpus = []
    for gpu in sweep.gpus:
        cases = summarise(sweep.on(gpu))
        gpus.append(
            {
                "gpu": gpu,
                "cases": _case_rows(cases, plain=True),
                "variants": [_finite(row._asdict()) for row in variant_summaries(cases)],
                "axes": [row._asdict() for row in axis_effects(cases)],
                "heat_maps": [each.to_dict() for each in heat_maps(cases, gpu)],
            }
        )
    value = {
        "environments": sweep.environments,
        "gpus": gpus,
        "results": [asdict(each) for each in sweep.results],
        "skips": [asdict(each) for each in sweep.skips],
    }
    return json.dumps(value, indent=1) + "\n"


def to_csv(sweep: Sweep) -> str:
    """Return a line per result, the environment in its last columns."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for gpu in sweep.gpus:
        for case in summarise(sweep.on(gpu)):
            for result in case.results:
                writer.writerow(_csv_row(case, result, sweep))
    return out.getvalue()


def to_md(sweep: Sweep) -> str:
    """Return Markdown: environment, cases, variants, axes, what was wrong and what was skipped."""
    parts: list[str] = []
    for gpu in sweep.gpus:
        own = sweep.on(gpu)
        cases = summarise(own)
        parts += [f"# Sweep on {gpu}", _environment_md(own)]
        for heading, rows in (
            ("Cases", _case_rows(cases)),
            ("Variants", _variant_rows(variant_summaries(cases))),
            ("Values of axes", _axis_rows(axis_effects(cases))),
            ("Not ranked", _wrong_rows(cases)),
        ):
            if rows:
                parts += [f"## {heading}", _md_table(rows)]
    if sweep.skips:
        parts += ["## Skipped", "\n".join(f"- {line}" for line in skip_lines(sweep.skips))]
    return "\n\n".join(parts) + "\n"


_WRITERS: dict[str, Callable[[Sweep], str]] = {".json": to_json, ".csv": to_csv, ".md": to_md}


Row = dict[str, Any]


def _case_rows(cases: Sequence[CaseSummary], *, plain: bool = False) -> list[Row]:
    rows = [
        {
            "case": case.name,
            "auto us": _us(case.auto.time_us if case.auto else None, plain),
            "best us": _us(case.best.time_us if case.best else None, plain),
            "regret": _percent(case.regret, plain),
            "serial us": _us(case.serial_us, plain),
            "prefill us": _us(case.sides_us[0], plain),
            "decode us": _us(case.sides_us[1], plain),
            "overlap": _overlap(case, plain),
            "best": case.best.variant if case.best else None,
            "ties": len(case.ties) - 1 if case.ties else 0,
        }
        for case in cases
    ]
    return (
        rows if plain else [{k: "-" if v is None else str(v) for k, v in r.items()} for r in rows]
    )


def _variant_rows(variants: Iterable[VariantSummary]) -> list[Row]:
    return [
        {
            "variant": row.name,
            "cases": str(row.cases),
            "time / auto": f"{row.geomean:.3f}" if row.cases else "-",
            "wins": str(row.wins),
            "worst": f"{row.worst:.2f}" if row.cases else "-",
            "not ranked": str(row.wrong),
        }
        for row in variants
    ]


def _axis_rows(effects: Iterable[AxisEffect]) -> list[Row]:
    return [
        {
            "axis": row.axis,
            "value": row.value,
            "cases": str(row.cases),
            "best with it / best": f"{row.geomean:.3f}",
        }
        for row in effects
    ]


def _wrong_rows(cases: Sequence[CaseSummary]) -> list[Row]:
    return [
        {
            "case": case.name,
            "variant": result.variant,
            "status": result.status,
            "reason": result.reason or "",
        }
        for case in cases
        for result in case.unranked
    ]


def _csv_row(case: CaseSummary, result: Result, sweep: Sweep) -> Row:
    environment = sweep.environments[result.environment]
    layer = result.layer
    values = {
        **asdict(result),
        "relative": None if result.relative is None else round(result.relative, 4),
        "overlap": _rounded(case.overlap_of(result)),
        "kernels": " ".join(result.kernels),
        "heads": f"{layer['num_qo_heads']}/{layer['num_kv_heads']}",
        **{name: layer[name] for name in ("head_dim", "dtype", "page_size")},
        **{k: environment.get(k) for k in ("gpu", "driver", "podrt", "git_commit", "samples")},
    }
    return {name: values[name] for name in _COLUMNS}


def _environment_md(sweep: Sweep) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in sweep.environment.items())


def _md_table(rows: Sequence[Row]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += [
        "| " + " | ".join(str(row[n]).replace("|", "\\|") for n in names) + " |" for row in rows
    ]
    return "\n".join(lines)


def _table(rows: Sequence[Row], texts: tuple[str, ...], title: str) -> Table:
    table = empty_table(title)
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if name in texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    return table


def _cell_text(cell: Any, heat_map: HeatMap) -> Text:
    if cell is None:
        return Text("")
    good = cell.value <= 1.02 if heat_map.less_is_better else cell.value >= 1.1
    bad = cell.value >= 1.1 if heat_map.less_is_better else cell.value < 1.0
    colour = "green" if good else "red" if bad else "yellow"
    label = cell.label.replace("\n", " ") + "*" * cell.is_auto
    return Text(label, f"bold {colour}" if cell.is_best else colour)


def _us(value: float | None, plain: bool) -> Any:
    return value if plain or value is None else f"{value:.1f}"


def _percent(ratio: float | None, plain: bool) -> Any:
    return ratio if plain or ratio is None else f"{ratio - 1:.1%}"


def _overlap(case: CaseSummary, plain: bool) -> Any:
    found = None if case.best is None else case.overlap_of(case.best)
    return found if plain or found is None else f"{found:.2f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _finite(row: Row) -> Row:
    return {k: None if v == float("inf") else v for k, v in row.items()}
