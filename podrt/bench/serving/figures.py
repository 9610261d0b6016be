"""Figures of serving results: throughput, times that requests see, where a step's time goes.

    podrt bench serving figures FILE.json ... --out FOLDER

Files are those that the benchmarks of the engines wrote; nothing is measured, and no GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from podrt.bench.plot import figure_class
from podrt.workloads.files import named_by, read_text

Row = dict[str, Any]

_SPEEDS = (
    ("all_tokens_per_s", "tokens/s"),
    ("decode_tokens_per_s", "tokens/s of decodes alone"),
)
#: What requests see, its name in rows before ``_p50_`` and ``_p99_``, and unit.
_PERCENTILES = (
    ("time to first token", "ttft", "s"),
    ("time between tokens", "tbt", "ms"),
    ("latency", "latency", "s"),
)
#: Parts of a step, and their colours.
_PARTS = ("attention", "cache writes, helpers", "the rest of the model", "GPU idle")
_COLOURS = ("C3", "C1", "C0", "0.85")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what a command line asks for, this process's by default, and print the files."""
    parser = argparse.ArgumentParser(
        "podrt bench serving figures", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="JSON files of serving results"
    )
    parser.add_argument("--out", type=Path, help="folder for PNG files; figures/ beside each file")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.out:
        _require_other_names(options.files)
    for file in options.files:
        for path in plot_serving(file, options.out or file.parent / "figures"):
            print(path)


def plot_serving(file: Path, folder: Path) -> list[Path]:
    """Draw every figure that a file has data for.

    Parameters
    ----------
    file : Path
        What `podrt.bench.serving.document.save` wrote.
    folder : Path
        Where the PNG files go, named after the file; made if need be.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ValueError
        The file cannot be read, holds something else, or nothing to draw.
    PodrtError
        There is no matplotlib; names the extra to install.
    """
    new_figure = figure_class()
    gpu, rows = _read(file)
    paths = []
    for name, draw in FIGURES.items():
        figure = new_figure(figsize=(9, 4), layout="constrained")
        try:
            is_drawn = draw(figure, rows)
        except KeyError as missing:
            raise ValueError(
                f"{file}: a row has no {missing}, which the figure of {name} needs; "
                "measure it again"
            ) from missing
        if is_drawn:
            figure.suptitle(f"{file.stem}, {gpu}", fontsize=10)
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{file.stem}-{name}.png")
            figure.savefig(paths[-1], dpi=150)
    if not paths:
        raise ValueError(f"{file}: has nothing to draw, in {len(rows)} rows that did not fail")
    return paths


def _require_other_names(files: Sequence[Path]) -> None:
    """Raise ValueError if figures of two files would be one in the same folder."""
    named: dict[str, Path] = {}
    for file in files:
        other = named.setdefault(file.stem, file)
        if other is not file:
            raise ValueError(
                f"{other} and {file}: would have figures of the same names in --out; leave --out "
                "away, or draw one after the other"
            )


def _read(file: Path) -> tuple[str, list[Row]]:
    """Return the GPU of a file of results, and the rows that did not fail."""
    with named_by("FILE", file):
        text = read_text(file)
    try:
        found = json.loads(text)
        gpu, rows = found["environment"]["gpu"], list(map(dict, found["rows"]))
        return str(gpu), [row for row in rows if "error" not in row]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"FILE {file}: expected results of podrt bench serving, with rows ({error!r})"
        ) from error


def draw_throughput(figure: Any, rows: Sequence[Row]) -> bool:
    """Tokens a second with all requests there at the beginning, and of decodes alone."""
    rows = [row for row in rows if not row.get("rate")]
    kinds = [kind for kind in _SPEEDS if any(kind[0] in row for row in rows)]
    for panel, (name, label) in zip(_panels(figure, len(kinds)), kinds, strict=True):
        _bars(panel, [row for row in rows if name in row], name)
        panel.set_ylabel(label)
    return bool(kinds)


def draw_percentiles(figure: Any, rows: Sequence[Row]) -> bool:
    """P50, and P99 behind it, of what requests see; one panel for each time."""
    kinds = [
        kind for kind in _PERCENTILES if any(f"{kind[1]}_p50_{kind[2]}" in row for row in rows)
    ]
    for panel, (label, name, unit) in zip(_panels(figure, len(kinds)), kinds, strict=True):
        p50, p99 = (f"{name}_p{p}_{unit}" for p in (50, 99))
        _bars(panel, [row for row in rows if p50 in row], p50, behind=p99)
        panel.set_ylabel(f"{label}, {unit}: P50, pale P99")
    return bool(kinds)


def draw_time(figure: Any, rows: Sequence[Row]) -> bool:
    """Milliseconds of a step by what takes them, a bar for each contender."""
    rows = [row for row in rows if "gpu_ms" in row and row.get("steps")]
    if not rows:
        return False
    (panel,) = _panels(figure, 1)
    begin = [0.0] * len(rows)
    for part, colour in zip(_PARTS, _COLOURS, strict=True):
        widths = [time_of_step(row)[part] for row in rows]
        panel.barh(range(len(rows)), widths, left=begin, color=colour, label=part)
        begin = [at + width for at, width in zip(begin, widths, strict=True)]
    panel.set_yticks(range(len(rows)), [f"{_who(row)}, {_where(row)}" for row in rows], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("ms of a step in the mean")
    figure.legend(loc="outside lower center", ncols=len(_PARTS), fontsize=8)
    return True


def time_of_step(row: Row) -> dict[str, float]:
    """Return the milliseconds of a mean step by what takes them.

    GPU time is of the profiled run, the step's own of the timed one.
    """
    attention = row["gpu_attention_ms"]
    around = row.get("gpu_writes_ms", 0.0) + row.get("gpu_helpers_ms", 0.0)
    parts = (
        attention,
        around,
        row["gpu_ms"] - attention - around,
        max(0.0, 1e3 * row["seconds"] - row["gpu_ms"]),
    )
    return {part: ms / row["steps"] for part, ms in zip(_PARTS, parts, strict=True)}


#: By name.
FIGURES: dict[str, Callable[[Any, Sequence[Row]], bool]] = {
    "throughput": draw_throughput,
    "percentiles": draw_percentiles,
    "time": draw_time,
}


def _panels(figure: Any, count: int) -> Sequence[Any]:
    return figure.subplots(1, count, squeeze=False)[0] if count else ()


def _bars(panel: Any, rows: Sequence[Row], name: str, *, behind: str | None = None) -> None:
    """Draw a group of bars for each place, a bar for each contender; a larger one behind it."""
    places = list(dict.fromkeys(map(_where, rows)))
    contenders = list(dict.fromkeys(map(_who, rows)))
    width = 0.8 / len(contenders)
    for number, contender in enumerate(contenders):
        own = [row for row in rows if _who(row) == contender]
        at = [places.index(_where(row)) + width * (number + 0.5) - 0.4 for row in own]
        if behind is not None:
            panel.bar(at, [row[behind] for row in own], width, color=f"C{number}", alpha=0.35)
        panel.bar(at, [row[name] for row in own], width, color=f"C{number}", label=contender)
    panel.set_xticks(range(len(places)), places, rotation=30, ha="right", fontsize=7)
    panel.legend(fontsize=7)


def _who(row: Row) -> str:
    return str(row.get("backend") or row["contender"])


def _where(row: Row) -> str:
    """Say what all contenders of a place had alike."""
    words = [row["mode"], str(row["budget"])]
    words += [str(row[name]) for name in ("trace", "decode") if row.get(name)]
    if row.get("gpus", 1) > 1:
        words.append(f"{row['gpus']} GPUs")
    if row.get("share_of_capacity"):
        words.append(f"{row['share_of_capacity']:.0%}")
    elif row.get("rate"):
        words.append(f"{row['rate']:g}/s")
    return " ".join(words)
