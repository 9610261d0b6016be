"""Heat maps as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from podrt.bench.plot import figure_class
from podrt.bench.sweep.heatmap import Cell, HeatMap

#: A value so far from 1 has the last colour.
_MOST = 1.5
#: Beyond this share of the colours letters are white.
_DARK = 0.6
_BEST, _AUTO = "black", "tab:blue"


def draw_heat_map(heat_map: HeatMap, path: Path) -> None:
    """Draw a map: PNG, SVG or PDF by the file's name.

    The best cell of each column has a black frame, the automatic choice a blue one.

    Raises
    ------
    PodrtError
        There is no matplotlib; names the extra to install.
    """
    width, height = len(heat_map.xs), len(heat_map.ys)
    figure = figure_class()(figsize=(3.2 + 1.15 * width, 2.6 + 0.42 * height), layout="constrained")
    axes = figure.subplots()
    grid = [[cell.value if cell else float("nan") for cell in line] for line in heat_map.cells]
    limit = _limit(grid)
    colours = "YlOrRd" if heat_map.less_is_better else "YlGn"
    image = axes.imshow(grid, cmap=colours, vmin=1.0, vmax=limit, aspect="auto")
    for y, line in enumerate(heat_map.cells):
        for x, cell in enumerate(line):
            if cell is not None:
                _draw_cell(axes, x, y, cell, is_dark=cell.value - 1 > _DARK * (limit - 1))
    axes.set_xticks(range(width), [_folded(x) for x in heat_map.xs], fontsize=7, rotation=30)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    axes.set_yticks(range(height), heat_map.ys, fontsize=8)
    axes.set_xlabel(heat_map.x_name, fontsize=8)
    axes.set_ylabel(heat_map.y_name, fontsize=8)
    figure.colorbar(image, label=heat_map.value_name)
    legend = "black frame: fastest; blue frame: the automatic choice"
    figure.suptitle(f"{heat_map.title}\n{legend}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _text_as_text():
        figure.savefig(path, dpi=110)


def _text_as_text() -> Any:
    """Return a context in which the letters of an SVG are letters, and not paths."""
    import matplotlib

    return matplotlib.rc_context({"svg.fonttype": "none"})


def _draw_cell(axes: Any, x: int, y: int, cell: Cell, *, is_dark: bool) -> None:
    ink = "white" if is_dark else "black"
    axes.text(x, y, cell.label, ha="center", va="center", fontsize=7, color=ink)
    for marked, inset, color in ((cell.is_best, 0.04, _BEST), (cell.is_auto, 0.11, _AUTO)):
        if marked:
            size = 1 - 2 * inset
            corner = x - 0.5 + inset, y - 0.5 + inset
            axes.add_patch(_rectangle(corner, size, color))


def _rectangle(corner: tuple[float, float], size: float, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, size, size, fill=False, edgecolor=color, linewidth=1.8)


def _limit(grid: list[list[float]]) -> float:
    """Return where colours end: at the largest value, but no further than is still told apart."""
    values = [value for line in grid for value in line if value == value]
    return max(1.05, min(max(values, default=1.0), _MOST))


def _folded(text: str, width: int = 18) -> str:
    """Return a label of a column in lines of some characters, broken at spaces."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
