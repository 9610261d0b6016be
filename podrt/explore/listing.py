"""The texts that a variant consists of: source, PTX, SASS, compiler log, config."""

from __future__ import annotations

import difflib
import json
from enum import StrEnum

from podrt.jit import build, compile_ptx, disassemble
from podrt.kernels.families import Variant, source_of


class What(StrEnum):
    """A text of one variant."""

    source = "source"
    ptx = "ptx"
    sass = "sass"
    log = "log"
    config = "config"


#: Pygments lexer of each text.
LEXERS = {
    What.source: "cuda",
    What.ptx: "ptx",
    What.sass: "text",
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
            return disassemble(build(source_of(config)).cubin)
        case What.log:
            return build(source_of(config)).log


def diff_of(first: Variant, second: Variant, what: What) -> str:
    """Return the unified diff of one text of two variants; empty when they are the same."""
    lines = difflib.unified_diff(
        text_of(first, what).splitlines(),
        text_of(second, what).splitlines(),
        fromfile=first.name,
        tofile=second.name,
        lineterm="",
    )
    return "\n".join(lines)
