"""The texts that a variant consists of: source, PTX, SASS, compiler log, config."""

from __future__ import annotations

import difflib
import json
import re
from enum import StrEnum

from podrt.explore.sass import lined_sass_of, sass_of
from podrt.explore.side_by_side import side_by_side
from podrt.jit import build, compile_ptx
from podrt.kernels.families import Variant, source_of

#: Of SASS, what differs in every line behind one more instruction.
_ADDRESS, _LABEL = re.compile(r"/\*[0-9a-f]{4,}\*/ *"), re.compile(r"\.L_x_\d+")


class What(StrEnum):
    """A text of one variant; `lines` is SASS below the source lines that it comes from."""

    source = "source"
    ptx = "ptx"
    sass = "sass"
    lines = "lines"
    log = "log"
    config = "config"


#: Pygments lexer of each text.
LEXERS = {
    What.source: "cuda",
    What.ptx: "ptx",
    What.sass: "text",
    What.lines: "text",
    What.log: "text",
    What.config: "json",
}


def text_of(config: Variant, what: What) -> str:
    """Return one text of a variant, compiled first where need be; no GPU is needed."""
    match what:
        case What.config:
            return json.dumps(config.to_dict(), indent=2)
        case What.source:
            return source_of(config).text
        case What.ptx:
            return compile_ptx(source_of(config))
        case What.sass:
            return sass_of(source_of(config))
        case What.lines:
            return lined_sass_of(source_of(config))
        case What.log:
            return build(source_of(config)).log


def diff_of(first: Variant, second: Variant, what: What) -> str:
    """Return the unified diff of one text of two variants; empty when they are the same.

    Addresses and the numbers of labels are left out of SASS: one more instruction would change all
    that follow.
    """
    lines = difflib.unified_diff(
        _comparable(first, what),
        _comparable(second, what),
        fromfile=first.name,
        tofile=second.name,
        lineterm="",
    )
    return "\n".join(lines)


def columns_of(first: Variant, second: Variant, what: What, width: int) -> str:
    """Return what differs as `diff_of` does, in two columns that take `width` together."""
    lines = side_by_side(_comparable(first, what), _comparable(second, what), width)
    return "\n".join(lines)


def _comparable(config: Variant, what: What) -> list[str]:
    text = text_of(config, what)
    if what in (What.sass, What.lines):
        text = _LABEL.sub(".L", _ADDRESS.sub("", text)).replace(config.name, "KERNEL")
    return text.splitlines()
