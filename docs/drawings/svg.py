"""A few shapes for drawings that read well on light and dark pages: text in, SVG out."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

#: Names of colours, for a light page and for a dark one. Sides have the same hue everywhere.
_COLORS = {
    "ink": ("#24292f", "#e6edf3"),
    "dim": ("#6e7781", "#9198a1"),
    "line": ("#afb8c1", "#57606a"),
    "panel": ("#f2f4f6", "#20262d"),
    "prefill": ("#3b82c4", "#4c94d8"),
    "decode": ("#e08a1e", "#e89a3c"),
    "on": ("#06121f", "#06121f"),  # text on the colours of the sides
    "copy": ("#3f9c6b", "#4fb27d"),
    "prefill-soft": ("#d3e4f4", "#1d3a55"),
    "decode-soft": ("#fae3c3", "#57391a"),
    "copy-soft": ("#d3ecdf", "#1c4532"),
}
_FONT = "-apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


class Drawing:
    """Shapes on a transparent ground; colours by name, lengths in pixels.

    Parameters
    ----------
    width, height : float
        Size of the drawing.
    title : str
        What it shows, for those who cannot see it.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self._size, self._title = (width, height), title
        self._shapes: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, *,
        outline: str | None = None, round_px: float = 0, dashed: bool = False,
    ) -> None:  # fmt: skip
        """Draw a box."""
        look = f' class="s-{outline}"' if outline else ""
        look += ' stroke-dasharray="5 4"' if dashed else ""
        corners = f' rx="{_n(round_px)}"' if round_px else ""
        self._shapes.append(
            f'<g class="f-{fill}"><rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" '
            f'height="{_n(height)}"{corners}{look}/></g>'
        )

    def text(
        self, x: float, y: float, text: str, *,
        fill: str = "ink", size: float = 13, anchor: str = "start", bold: bool = False,
    ) -> None:  # fmt: skip
        """Write a line, whose baseline is at `y`."""
        weight = ' font-weight="600"' if bold else ""
        self._shapes.append(
            f'<text class="f-{fill}" x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" '
            f'text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def line(
        self, points: list[tuple[float, float]], stroke: str = "line", *,
        arrow: bool = False, dashed: bool = False, width: float = 1.3,
    ) -> None:  # fmt: skip
        """Draw a line through points, with an arrow at its end if asked for."""
        path = " ".join(f"{'L' if i else 'M'}{_n(x)} {_n(y)}" for i, (x, y) in enumerate(points))
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._shapes.append(
            f'<path class="s-{stroke}" d="{path}" fill="none" stroke-width="{_n(width)}"{dashes}/>'
        )
        if arrow:
            self._arrow_head(points[-2], points[-1], stroke)

    def save(self, path: Path) -> None:
        """Write the SVG file."""
        path.write_text(self.svg(), encoding="utf-8")

    def svg(self) -> str:
        """Return the text of the SVG."""
        width, height = map(_n, self._size)
        return "\n".join(
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
                f'width="{width}" height="{height}" role="img" font-family="{_FONT}">',
                f"<title>{escape(self._title)}</title>",
                f"<style>{_rules(0)}\n@media (prefers-color-scheme: dark) {{{_rules(1)}}}</style>",
                *self._shapes,
                "</svg>\n",
            )
        )

    def _arrow_head(self, before: tuple[float, float], tip: tuple[float, float], fill: str) -> None:
        dx, dy = tip[0] - before[0], tip[1] - before[1]
        length = (dx * dx + dy * dy) ** 0.5
        dx, dy = 7 * dx / length, 7 * dy / length
        corners = (tip, (tip[0] - dx - dy / 2, tip[1] - dy + dx / 2))
        corners += ((tip[0] - dx + dy / 2, tip[1] - dy - dx / 2),)
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y in corners)
        self._shapes.append(f'<polygon class="f-{fill}" points="{points}"/>')


def _rules(scheme: int) -> str:
    return "".join(
        f".f-{name}{{fill:{colors[scheme]}}}.s-{name}{{stroke:{colors[scheme]}}}"
        for name, colors in _COLORS.items()
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
