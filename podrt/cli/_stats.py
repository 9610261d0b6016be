"""The tables of ``podrt explore stats``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from rich.text import Text

from podrt.cli._output import console, table
from podrt.explore.stats import VariantStats
from podrt.gpu.arch import KIB
from podrt.kernels.families import Variant

#: A narrower terminal gets names without the parts that all rows share.
_FULL_NAMES_WIDTH = 150


def print_stats(rows: list[VariantStats]) -> None:
    out = console()
    names, title = [row.name for row in rows], None
    if out.width < _FULL_NAMES_WIDTH:
        names, title = shorten(names)
    numbers = ("regs", "smem KiB", "spill B", "CTAs/SM", "s")
    result = table("variant", *numbers[:-1], "limit", "s", "from", title=title, numbers=numbers)
    for name, row in zip(names, rows, strict=True):
        result.add_row(
            name,
            _registers(row),
            f"{row.smem_bytes / 1024:.1f}",
            Text(str(row.spill_bytes), "red" if row.spill_bytes else ""),
            str(row.ctas_per_sm),
            ", ".join(row.limited_by),
            f"{row.compile_time_s:.1f}",
            row.cache,
        )
    out.print(result)


def print_mixes(names: list[str], mixes: list[dict[str, int]]) -> None:
    shown, title = shorten(names)
    kinds = [kind for kind in mixes[0] if any(mix[kind] for mix in mixes)]
    result = table("variant", *kinds, title=title, numbers=tuple(kinds))
    for name, mix in zip(shown, mixes, strict=True):
        result.add_row(name, *(str(mix[kind]) for kind in kinds))
    console().print(result)


def print_smem(configs: Sequence[Variant]) -> None:
    """Print what lies in the dynamic shared memory of each variant."""
    numbers = ("from", "to", "KiB")
    for config in configs:
        result = table("buffer", *numbers, "", numbers=numbers)
        for name, offset, size, doc in config.smem_buffers:
            result.add_row(name, str(offset), str(offset + size), f"{size / KIB:.2f}", doc)
        console().print(config.name, result)


def print_phases(rows: Sequence[VariantStats], times: Sequence[dict[str, float]]) -> None:
    """Print how long each phase of each compilation took, and how large the binary is."""
    shown, title = shorten([row.name for row in rows])
    phases = list(dict.fromkeys(phase for each in times for phase in each))
    columns = (*(f"{phase} s" for phase in phases), "binary KiB")
    result = table("variant", *columns, "from", title=title, numbers=columns)
    for name, row, each in zip(shown, rows, times, strict=True):
        seconds = (f"{each[phase]:.2f}" if phase in each else "" for phase in phases)
        result.add_row(name, *seconds, f"{row.cubin_bytes / KIB:.0f}", row.cache)
    console().print(result)


def _registers(row: VariantStats) -> str:
    return "/".join(map(str, row.role_registers.values() or [row.registers]))


def shorten(names: list[str]) -> tuple[list[str], str | None]:
    """Return what is left of names without the parts they all share, and a line that says so."""
    parts = [name.split("_") for name in names]
    head = _num_shared(parts)
    tail = _num_shared([part[head:][::-1] for part in parts])
    if len(names) < 2 or head + tail == 0:
        return names, None
    left = ["_".join(part[head : len(part) - tail]) for part in parts]
    shared = "_".join([*parts[0][:head], "*", *parts[0][len(parts[0]) - tail :]])
    return left, f"variants {shared}"


def _num_shared(lists: list[list[str]]) -> int:
    """How many leading elements are the same in all of `lists`."""
    return sum(
        1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False))
    )
