"""Two texts beside each other, where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import zip_longest

#: Lines that are the same shown around those that differ.
_CONTEXT = 3
_MIN_WIDTH = 24


def side_by_side(first: Sequence[str], second: Sequence[str], width: int) -> list[str]:
    """Return the parts of two texts that differ, in two columns; empty when they are the same.

    Between the columns stands ``|`` where lines differ, ``<`` and ``>`` where one side has no such
    line, and nothing where they are the same. Longer lines are cut, which ``…`` says.

    Parameters
    ----------
    first, second : sequence of str
        Lines.
    width : int
        Most columns of a line.

    Raises
    ------
    ValueError
        `width` leaves no room for two columns.
    """
    if width < _MIN_WIDTH:
        raise ValueError(f"width={width}: two texts need at least {_MIN_WIDTH} columns")
    column = (width - 3) // 2
    matcher = SequenceMatcher(None, first, second)
    lines: list[str] = []
    for group in matcher.get_grouped_opcodes(_CONTEXT):
        begin, other = group[0][1] + 1, group[0][3] + 1
        lines.append(_row(f"line {begin}", " ", f"line {other}", column))
        for tag, i, i_end, j, j_end in group:
            mark = " " if tag == "equal" else None
            for left, right in zip_longest(first[i:i_end], second[j:j_end]):
                lines.append(_row(left, mark or _mark(left, right), right, column))
    return lines


def _mark(left: str | None, right: str | None) -> str:
    return ">" if left is None else "<" if right is None else "|"


def _row(left: str | None, mark: str, right: str | None, column: int) -> str:
    return f"{_cut(left, column):{column}} {mark} {_cut(right, column)}".rstrip()


def _cut(text: str | None, column: int) -> str:
    flat = (text or "").expandtabs(4)
    return flat if len(flat) <= column else f"{flat[: column - 1]}…"
