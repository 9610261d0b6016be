"""Rows of results side by side, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from podrt.bench.serving.run import agreement

Row = dict[str, Any]

#: What is set side by side: its name in rows, for people, and whether more is better.
_MEASURES = (
    ("all_tokens_per_s", "tokens/s", True),
    ("decode_tokens_per_s", "decode tokens/s", True),
    ("gpu_attention_ms", "GPU time in attention", False),
    ("ttft_p50_s", "TTFT P50", False),
    ("ttft_p99_s", "TTFT P99", False),
    ("tbt_p50_ms", "TBT P50", False),
    ("tbt_p99_ms", "TBT P99", False),
)
#: What rows must have alike to be set side by side.
_ALIKE = ("mode", "budget", "trace", "decode")


def comparisons(rows: Sequence[Row]) -> list[str]:
    """Return lines that set the other backends against the first, and GPUs against one."""
    rows = [row for row in rows if "error" not in row]
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    gpus = list(dict.fromkeys(row.get("gpus", 1) for row in rows))
    lines = [
        line
        for count in gpus
        for backend in backends[1:]
        for line in _lines(rows, (backends[0], count), (backend, count))
    ]
    for backend in backends:
        for count in gpus[1:]:
            lines += _lines(rows, (backend, gpus[0]), (backend, count))
    return lines


def _lines(rows: Sequence[Row], old: tuple[str, int], new: tuple[str, int]) -> list[str]:
    olds, news = (
        {
            (*map(row.get, _ALIKE), row.get("share_of_capacity", row.get("rate"))): row
            for row in rows
            if (row["backend"], row.get("gpus", 1)) == wanted
        }
        for wanted in (old, new)
    )
    return [_line(olds[key], row) for key, row in news.items() if key in olds]


def _line(old: Row, new: Row) -> str:
    parts = [f"{_where(new)}: {_who(new, old)} against {_who(old, new)}"]
    for name, label, is_speed in _MEASURES:
        if old.get(name) and new.get(name):
            ratio = new[name] / old[name] if is_speed else old[name] / new[name]
            parts.append(f"{label} {ratio:.3f}x")
    if "tokens" in old and "tokens" in new:
        parts.append(agreement(old["tokens"], new["tokens"], _margins(old)))
    return ", ".join(parts)


def _margins(row: Row) -> Any:
    margins = row.get("margins", ())
    return margins if all(margins) else ()


def _who(row: Row, other: Row) -> str:
    gpus = row.get("gpus", 1)
    return f"{row['backend']}" + (f" on {gpus} GPUs" if gpus != other.get("gpus", 1) else "")


def _where(row: Row) -> str:
    words = [f"{row['mode']} budget {row['budget']}"]
    words += [str(row[name]) for name in ("trace", "decode") if row.get(name)]
    if row.get("share_of_capacity"):
        words.append(f"at {row['share_of_capacity']:.0%} of the capacity")
    elif row.get("rate"):
        words.append(f"at {row['rate']:g} requests/s")
    return " ".join(words)
