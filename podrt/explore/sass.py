"""SASS with what the scheduler is told of each instruction, and with the source beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from podrt.jit import KernelSource, build, disassemble, recipe_of

#: Where the fields of the control word begin, in the upper half of an instruction's 128 bits.
_STALL, _YIELD, _WRITE, _READ, _WAIT = 41, 45, 46, 49, 52
_NUM_BARRIERS = 6
_NO_BARRIER = 7

_LINE_INFO = "-lineinfo"
_FIRST_HALF = re.compile(r"(\s*/\*[0-9a-f]{4,}\*/.*?)\s*/\* 0x[0-9a-f]{16} \*/\s*")
_SECOND_HALF = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/\s*")
_PLACE = re.compile(r'\s*//## File "(.*?)", line (\d+)(?: inlined at .*)?')

#: Says what `with_control` puts in front.
LEGEND = (
    "// waits for barriers : read barrier : write barrier : Y = may yield : stall in cycles",
    "// [B0-----:R-:W-:-:S01]",
)


@dataclass(frozen=True)
class Control:
    """What an instruction tells the warp scheduler.

    NVIDIA documents none of it; the fields are those that Jia et al. found ("Dissecting the NVIDIA
    Volta GPU Architecture via Microbenchmarking", 2018), which have not moved since sm_70.

    Attributes
    ----------
    waits : tuple of int
        Barriers, 0 to 5, that must be clear before it is issued.
    read_barrier, write_barrier : int or None
        The barrier that it holds until its operands are read, and until its result is there.
    may_yield : bool
        The scheduler may prefer another warp next.
    stall_cycles : int
        Cycles before the warp's next instruction, 0 to 15.
    """

    waits: tuple[int, ...]
    read_barrier: int | None
    write_barrier: int | None
    may_yield: bool
    stall_cycles: int

    @classmethod
    def of(cls, upper_half: int) -> Control:
        """Read the upper 64 bits of an instruction."""
        return cls(
            waits=tuple(n for n in range(_NUM_BARRIERS) if upper_half >> (_WAIT + n) & 1),
            read_barrier=_barrier(upper_half >> _READ),
            write_barrier=_barrier(upper_half >> _WRITE),
            may_yield=not upper_half >> _YIELD & 1,
            stall_cycles=upper_half >> _STALL & 0xF,
        )

    def __str__(self) -> str:
        waits = "".join(str(n) if n in self.waits else "-" for n in range(_NUM_BARRIERS))
        read, write = ("-" if n is None else n for n in (self.read_barrier, self.write_barrier))
        yields = "Y" if self.may_yield else "-"
        return f"[B{waits}:R{read}:W{write}:{yields}:S{self.stall_cycles:02d}]"


class _Place(NamedTuple):
    """A line of the source, as ``nvdisasm`` names it."""

    path: str
    line: int


def with_control(sass: str) -> str:
    """Return SASS with `Control` in front of each instruction, below a legend.

    Parameters
    ----------
    sass : str
        As `podrt.jit.disassemble` returns it, with encodings.
    """
    return "\n".join((*LEGEND, *_lines(sass)))


def with_source(sass: str, texts: Mapping[str, str]) -> str:
    """Return SASS as `with_control` does, below the lines of the source that it comes from.

    A line that was inlined is followed by those that called it, the nearest first.

    Parameters
    ----------
    sass : str
        As `podrt.jit.disassemble` returns it, with encodings and lines.
    texts : mapping of str to str
        Name and text of the source and of each header.
    """
    sources = {name: text.splitlines() for name, text in texts.items()}
    lines, chain = list(LEGEND), list[_Place]()
    for line in _lines(sass):
        if place := _PLACE.fullmatch(line):
            chain.append(_Place(place[1], int(place[2])))
            continue
        if chain:
            lines.append(_described(chain, sources))
            chain = []
        lines.append(line)
    return "\n".join(lines)


def sass_of(source: KernelSource) -> str:
    """Return a kernel's SASS with control, compiled first where need be."""
    return with_control(disassemble(build(source).cubin, encodings=True))


def lined_sass_of(source: KernelSource) -> str:
    """Return a kernel's SASS below its source lines; built with line numbers, which are no code."""
    if _LINE_INFO not in recipe_of(source).options:
        source = replace(source, options=(*source.options, _LINE_INFO))
    sass = disassemble(build(source).cubin, encodings=True, lines=True)
    own = f"{source.name}.cu"
    text = with_source(sass, {own: source.text, **dict(source.headers)})
    return text.replace(f"{own}:", "kernel.cu:")


def _lines(sass: str) -> Iterator[str]:
    """Yield lines with both halves of an encoding replaced by what the upper one says."""
    instruction = None
    for line in sass.splitlines():
        if first := _FIRST_HALF.fullmatch(line):
            instruction = first[1].strip()
        elif instruction and (second := _SECOND_HALF.fullmatch(line)):
            yield f"{Control.of(int(second[1], 16))} {instruction}"
            instruction = None
        else:
            yield line


def _barrier(bits: int) -> int | None:
    number = bits & 0b111
    return None if number == _NO_BARRIER else number


def _described(chain: list[_Place], sources: Mapping[str, list[str]]) -> str:
    """Return one line for a place and its callers; the compiler gave their paths, not names."""
    named = []
    for path, line in chain:
        name = next((name for name in sources if f"/{path}".endswith(f"/{name}")), path)
        named.append(_Place(name, line))
    (name, line), *callers = named
    text = sources.get(name, [])[line - 1 : line]
    called = "".join(f" < {caller}:{at}" for caller, at in callers)
    return f"// {name}:{line}{called}" + "".join(f"\n//     {words.strip()}" for words in text)
