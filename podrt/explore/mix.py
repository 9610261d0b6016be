"""What kinds of instructions a kernel has, counted in its SASS."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Kinds in the order in which they are shown, with the opcodes that each begins with.
KINDS: Mapping[str, tuple[str, ...]] = {
    "wgmma": ("HGMMA",),
    "mma": ("HMMA",),
    "TMA": ("UTMALDG", "UBLKCP"),
    "cp.async": ("LDGSTS",),
    "ldmatrix": ("LDSM",),
    "ex2": ("MUFU.EX2",),
    "float": ("FFMA", "FMUL", "FADD", "FMNMX", "FSEL", "FSETP"),
    "convert": ("F2FP", "F2F", "F2I", "I2F"),
    "global": ("LDG", "STG", "ATOM", "RED"),
    "shared": ("LDS", "STS"),
    "barriers": ("BAR", "SYNCS", "WARPSYNC", "MEMBAR", "FENCE", "WARPGROUP"),
    "branches": ("BRA", "BSSY", "BSYNC", "CALL", "RET", "EXIT"),
}

_OPCODE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


def instruction_mix(sass: str) -> dict[str, int]:
    """Return how many instructions of each kind SASS has.

    Parameters
    ----------
    sass : str
        As `podrt.jit.disassemble` returns it.

    Returns
    -------
    dict of str to int
        ``"all"``, then the kinds of `KINDS`, then ``"other"``: mostly integer arithmetic, for
        addresses. Instructions as they stand in the binary, not as often as they run.
    """
    counts = dict.fromkeys(("all", *KINDS, "other"), 0)
    for match in map(_OPCODE.match, sass.splitlines()):
        if match:
            counts["all"] += 1
            counts[_kind_of(match[1])] += 1
    return counts


def _kind_of(opcode: str) -> str:
    for kind, starts in KINDS.items():
        if any(opcode == start or opcode.startswith(f"{start}.") for start in starts):
            return kind
    return "other"
