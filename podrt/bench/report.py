"""A suite's results as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from podrt.bench.results import Results
from podrt.bench.summary import CaseSummary, peer_names, summarise
from podrt.bench.tables import empty_table

#: How to read the table; printed under it.
LEGEND = (
    "auto: podrt's own choice. predicted: what the cost model says of it. best: the fastest of all "
    "candidates, serial included (= ties within 1 %). regret: what auto takes beyond it. x: the "
    "other's time over auto's, above 1 is slower than podrt; green: each side on SMs of its own, "
    "with the best split. oracle, floor: bound over auto, 1 is reached. err: largest error against "
    "float64, over the row's largest value."
)


def result_table(results: Results, title: str) -> Table:
    """Return a table with one line per case."""
    summaries = summarise(results.rows)
    peers = peer_names(summaries)
    table = empty_table(title)
    table.add_column("case", overflow="fold")
    for heading in ("auto us", "predicted", "TFLOP/s", "GB/s", "best us", "regret"):
        table.add_column(heading, justify="right")
    table.add_column("best", overflow="fold")
    others = ["serial x", "streams x", "green x", *(f"{name} x" for name in peers)]
    for heading in (*others, "oracle", "floor", "err"):
        table.add_column(heading, justify="right", overflow="fold")
    for summary in summaries:
        table.add_row(*_cells(summary, peers))
    return table


def failure_lines(results: Results) -> list[str]:
    """Return a line per distinct failure: who, why, and in how many cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for summary in summarise(results.rows):
        for name, reason in summary.errors().items():
            cases.setdefault((name, reason), []).append(summary.name)
    return [
        f"{name} failed in {len(names)} case(s), first {names[0]}: {reason}"
        for (name, reason), names in cases.items()
    ]


def _cells(summary: CaseSummary, peers: Sequence[str]) -> list[str | Text]:
    row = summary.rows[0]
    speedups = [
        summary.speedup_over(us)
        for us in (
            row.own_serial_us,
            row.own_streams_us,
            summary.green_us,
            *(row.peers_us.get(p) for p in peers),
        )
    ]
    return [
        summary.name,
        _number(summary.auto_us, 1) if summary.auto_us else Text("failed", "bold red"),
        _number(summary.predicted_us, 1),
        _number(summary.tflops, 0),
        _number(summary.gbs, 0),
        _number(summary.best_us, 1),
        "-" if summary.regret is None else f"{summary.regret - 1:.1%}",
        " = ".join(summary.best),
        *(_speedup(value) for value in speedups),
        *(_bound(bound, summary.auto_us) for bound in (row.oracle_us, row.floor_us)),
        "-" if summary.max_rel_err is None else f"{summary.max_rel_err:.1e}",
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _speedup(value: float | None) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{value:.2f}", "green" if value > 1.01 else "red" if value < 0.99 else "")


def _bound(bound_us: float | None, auto_us: float | None) -> str:
    return "-" if bound_us is None or not auto_us else f"{bound_us / auto_us:.2f}"
