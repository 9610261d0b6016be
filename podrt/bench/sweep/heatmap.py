"""Heat maps of a sweep, as plain data: what lies where, the best cells and the automatic choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

from podrt.bench.sweep.axes import AXES, CTAS_PER_SM, natural, value_text
from podrt.bench.sweep.records import AUTO, SERIAL, Result
from podrt.bench.sweep.summary import CaseSummary

#: The axis of SMs that take one side first, of either side.
ALLOCATION = "allocation"
_NOT_DRAWN = ("decode_only_sms", "prefill_only_sms", CTAS_PER_SM)
#: Axes that there are maps of, and of which one is shown where nobody asks for others.
DRAWN_AXES = (ALLOCATION, *(name for name in AXES if name not in _NOT_DRAWN))
USUAL_AXES = (ALLOCATION, "ratio")


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map.

    Attributes
    ----------
    value : float
        What is coloured.
    label : str
        What is written in it.
    variant, case : str
        The result that it is of.
    is_best, is_auto : bool
        The best of its column, or of a map of lengths; and what podrt chooses itself.
    """

    value: float
    label: str
    variant: str
    case: str
    is_best: bool
    is_auto: bool


@dataclass(frozen=True)
class HeatMap:
    """Cells over two axes.

    Attributes
    ----------
    title : str
    x_name, y_name, value_name : str
    xs, ys : tuple of str
        Labels, from the left and from the top.
    cells : tuple of tuples of Cell or None
        ``cells[y][x]``.
    less_is_better : bool
        Of the values.
    notes : tuple of str
        Lines under it: how far the automatic choice is from the best, column by column.
    """

    title: str
    x_name: str
    y_name: str
    value_name: str
    xs: tuple[str, ...]
    ys: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    less_is_better: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)


def heat_maps(
    cases: Sequence[CaseSummary], gpu: str, axes: Sequence[str] = USUAL_AXES
) -> list[HeatMap]:
    """Return the maps of some axes that a sweep has data for, then that of lengths.

    Raises
    ------
    ValueError
        There is no such axis.
    """
    require_axes(axes)
    maps = [axis_map(cases, axis, gpu) for axis in axes]
    return [each for each in (*maps, shape_map(cases, gpu)) if each is not None]


def require_axes(axes: Iterable[str]) -> None:
    """Check that there are maps of some axes.

    Raises
    ------
    ValueError
        There is none of one of them; names the nearest.
    """
    for axis in axes:
        if axis not in DRAWN_AXES:
            near = get_close_matches(axis, DRAWN_AXES, n=3, cutoff=0.4) or DRAWN_AXES
            raise ValueError(f"map={axis!r}: there is no such axis; try {', '.join(near)}")


def axis_map(cases: Sequence[CaseSummary], axis: str, gpu: str) -> HeatMap | None:
    """Return an axis over cases, those with the most prefill first.

    A cell is the fastest of all variants with a value of the axis, over the fastest of the case.
    The automatic choice stands in the row of its own allocation, where there is one, and else in a
    row of its own.

    Parameters
    ----------
    cases : sequence of CaseSummary
    axis : str
        `ALLOCATION`, or one of `AXES`.
    gpu : str
        Its name.

    Returns
    -------
    HeatMap or None
        None where no two values of the axis were measured.
    """
    value_of = _allocation if axis == ALLOCATION else _value_of(axis)
    ordered = sorted(
        (case for case in cases if case.ranked), key=lambda case: case.decode_share or 0.0
    )
    columns = [_with_best(_column(case, value_of)) for case in ordered]
    varied = {y for column in columns for y, cell in column.items() if cell.variant != AUTO}
    if len(varied) < 2:
        return None
    rows = sorted({y for column in columns for y in column}, key=_place)
    shares = [_share_text(case) for case in ordered]
    return HeatMap(
        title=f"{axis} over decode share, {gpu}",
        x_name="decode's share of the time of both sides alone, and the batch",
        y_name=_NAMES.get(axis, axis),
        value_name="time over the fastest of the batch",
        xs=tuple(f"{share} {case.name}" for share, case in zip(shares, ordered, strict=True)),
        ys=tuple(rows),
        cells=tuple(tuple(column.get(y) for column in columns) for y in rows),
        less_is_better=True,
        notes=tuple(_note(case) for case in ordered),
    )


def shape_map(cases: Sequence[CaseSummary], gpu: str) -> HeatMap | None:
    """Return prefill tokens over decodes: what the best gains over serial, and auto's regret.

    None where fewer than two lengths, or two numbers of decodes, were measured. Of cases in one
    place, such as those of several layers, the last one is shown.
    """
    placed = {
        (case.case.prefill_tokens, len(case.case.decode)): case
        for case in cases
        if case.case.is_hybrid and case.best is not None and case.serial_us is not None
    }
    tokens, decodes = (sorted({key[at] for key in placed}) for at in (0, 1))
    if len(tokens) < 2 and len(decodes) < 2:
        return None
    cells = [[_gain(placed.get((t, d))) for d in decodes] for t in reversed(tokens)]
    return HeatMap(
        title=f"prefill length over decode batch, {gpu}",
        x_name="decodes",
        y_name="prefill tokens",
        value_name="serial over the fastest",
        xs=tuple(map(str, decodes)),
        ys=tuple(map(str, reversed(tokens))),
        cells=_with_most(cells),
        less_is_better=False,
        notes=tuple(_note(case) for case in placed.values()),
    )


_NAMES = {ALLOCATION: "SMs that take one side first"}

ValueOf = Callable[[Result], str | None]


def _allocation(result: Result) -> str | None:
    """Return the row of a fused launch of the Hopper family."""
    if len(result.kernels) != 1 or "pod_hopper" not in result.kernels[0]:
        return None
    decode, prefill = (result.shares[f"{side}_only_sms"] for side in ("decode", "prefill"))
    if decode and prefill:
        return f"decode {decode}, prefill {prefill}"
    return f"prefill {prefill}" if prefill else f"decode {decode}"


def _value_of(axis: str) -> ValueOf:
    def value_of(result: Result) -> str | None:
        found = dict(result.combination.fixed).get(axis)
        return None if found is None else value_text(found)

    return value_of


def _place(row: str) -> tuple[int, float, str]:
    """Order rows: most SMs of prefill, none, most of decode; numbers by size; auto last."""
    if row == AUTO:
        return 2, 0.0, row
    side, _, number = row.partition(" ")
    if side in ("prefill", "decode") and number.isdecimal():
        return 0, -float(number) if side == "prefill" else float(number), ""
    return natural(row)


def _column(case: CaseSummary, value_of: ValueOf) -> dict[str, Cell]:
    """Return the cells of one case by row."""
    column: dict[str, Cell] = {}
    auto = case.auto
    for result in case.ranked:  # the fastest first
        row = value_of(result)
        if row is not None and result.variant not in (AUTO, SERIAL) and row not in column:
            column[row] = _cell(case, result, is_auto=False)
    if auto is not None:
        row = value_of(auto)
        own = column.get(row) if row else None
        cell = _cell(case, auto, is_auto=True)
        if row and own:
            regret = f"\nauto {cell.label}" if cell.label != own.label else ""
            column[row] = replace(own, label=own.label + regret, is_auto=True)
        else:
            column[row or AUTO] = cell
    return column


def _with_best(column: dict[str, Cell]) -> dict[str, Cell]:
    least = min((cell.value for cell in column.values()), default=0.0)
    return {y: replace(cell, is_best=cell.value == least) for y, cell in column.items()}


def _cell(case: CaseSummary, result: Result, *, is_auto: bool) -> Cell:
    value = case.regret_of(result) or 1.0
    return Cell(value, f"{value:.2f}", result.variant, case.name, False, is_auto)


def _gain(case: CaseSummary | None) -> Cell | None:
    if case is None or case.best is None or case.best.time_us is None or case.serial_us is None:
        return None
    gain = case.serial_us / case.best.time_us
    regret = "" if case.regret is None else f"\nauto +{case.regret - 1:.1%}"
    is_auto = case.best.variant == AUTO
    return Cell(gain, f"{gain:.2f}x{regret}", case.best.variant, case.name, False, is_auto)


def _with_most(cells: list[list[Cell | None]]) -> tuple[tuple[Cell | None, ...], ...]:
    most = max(cell.value for line in cells for cell in line if cell is not None)
    return tuple(
        tuple(cell and replace(cell, is_best=cell.value == most) for cell in line) for line in cells
    )


def _share_text(case: CaseSummary) -> str:
    return "-" if case.decode_share is None else f"{case.decode_share:.0%}"


def _note(case: CaseSummary) -> str:
    best, regret = case.best, case.regret
    assert best is not None
    after = "auto has no time" if regret is None else f"auto +{regret - 1:.1%}"
    return f"{case.name}: best {best.variant}, {best.time_us:.1f} us; {after}"
