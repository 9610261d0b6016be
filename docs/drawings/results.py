"""Draws results of ``podrt bench --suite peers --peers fa3``: bars beside FlashAttention-3.

    python docs/drawings/results.py bench/results/h100/peers.json bench/results/h200/peers.json

writes peers-h100.svg and peers-h200.svg beside this file, named after suite and folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from svg import Drawing

_LEFT, _RIGHT, _TOP, _ROW, _BAR = 268, 60, 64, 40, 11
_WIDTH = 880
#: What is drawn of a case, its colour and how it is called.
_BARS = (
    ("fa3", "line", "FlashAttention-3, one side after the other"),
    ("serial", "copy-soft", "podrt, one side after the other"),
    ("fused", "copy", "podrt, one launch"),
)


def times_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the times of each case in microseconds, by the names of the bars."""
    return {
        f"{row['num_qo_heads']}/{row['num_kv_heads']}  {row['case'].rpartition('/')[2]}": {
            "fa3": row["peers_us"]["fa3 serial"],
            "serial": row["own_serial_us"],
            "fused": row["time_us"],
        }
        for row in rows
        if row["policy"] == "auto"
    }


def draw(results: dict[str, Any]) -> Drawing:
    """Return bars of all cases, as shares of what FlashAttention-3 takes."""
    times = times_of(results["rows"])
    gpu = results["environment"]["gpu"]
    drawing = Drawing(
        _WIDTH, _TOP + len(times) * _ROW + 34, f"Times of {len(times)} hybrid batches"
    )
    x = 20
    for _, fill, name in _BARS:
        drawing.rect(x, 14, 18, 10, fill, outline=_outline(fill))
        drawing.text(x + 24, 23, name, size=12)
        x += 44 + 6.7 * len(name)
    drawing.text(20, 48, "heads, chunk @ keys + decodes x keys", fill="dim", size=12)
    drawing.text(_WIDTH - 4, 48, "FA3 / podrt", fill="dim", size=12, anchor="end")
    scale = _WIDTH - _LEFT - _RIGHT
    for index, (case, own) in enumerate(times.items()):
        y = _TOP + index * _ROW
        drawing.text(20, y + 21, case, size=12)
        for place, (name, fill, _) in enumerate(_BARS):
            width = own[name] / max(times[case].values()) * scale
            drawing.rect(_LEFT, y + place * _BAR, width, _BAR - 1.5, fill, outline=_outline(fill))
        ratio = own["fa3"] / own["fused"]
        drawing.text(_WIDTH - 4, y + 21, f"{ratio:.2f}", bold=True, anchor="end")
    drawing.text(
        20, _TOP + len(times) * _ROW + 18, f"{gpu}, bfloat16, cold L2", fill="dim", size=12
    )
    return drawing


def _outline(fill: str) -> str | None:
    """Pale bars have an outline, or they would hardly be seen."""
    return fill.removesuffix("-soft") if fill.endswith("-soft") else None


def main() -> None:
    """Read results files, write their drawings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    for path in parser.parse_args().results:
        drawing = draw(json.loads(path.read_text(encoding="utf-8")))
        drawing.save(Path(__file__).with_name(f"{path.stem}-{path.parent.name}.svg"))


if __name__ == "__main__":
    main()
