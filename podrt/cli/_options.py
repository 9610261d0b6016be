"""The options that say which variants, or which layer, a command is about."""

from __future__ import annotations

from typing import Annotated

import typer

from podrt.explore.select import FALLBACK_ARCH, completions

#: Of --page-size in every command that has it.
PAGE_SIZE_HELP = "Tokens of a page; none or 0: a contiguous cache."

WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[WORD]...",
        help="Words of aliases or names, field=value: what has all of them. Default: all.",
        autocompletion=completions,
    ),
]
ArchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arch",
        help=f"Architecture, or 'all'; repeatable. Default: this GPU, else {FALLBACK_ARCH}.",
    ),
]
FormOption = Annotated[
    list[str] | None, typer.Option("--form", help="pod, prefill or decode; repeatable.")
]
DtypeOption = Annotated[
    list[str] | None, typer.Option("--dtype", help="bfloat16 or float16; repeatable.")
]
HeadDimOption = Annotated[
    list[int] | None,
    typer.Option(
        "--head-dim", help="A multiple of 8 from 32 to 256; repeatable. By default 64, 128 and 256."
    ),
]
VHeadDimOption = Annotated[
    list[int] | None,
    typer.Option(
        "--v-head-dim",
        help="Those whose values are narrower than keys, of so many elements; repeatable.",
    ),
]
PageSizeOption = Annotated[
    list[str] | None,
    typer.Option("--page-size", help=f"{PAGE_SIZE_HELP} Repeatable."),
]
DecodeRowsOption = Annotated[
    list[int] | None,
    typer.Option("--decode-rows", help="Query rows of a decode tile: 8, 16 or 32; repeatable."),
]
MaskOption = Annotated[
    list[str] | None,
    typer.Option("--mask", help="causal (the default) or full (causal=False); repeatable."),
]
CappedOption = Annotated[
    bool,
    typer.Option("--capped", help="Variants that cap scores, in place of those that do not."),
]
TreeOption = Annotated[
    bool,
    typer.Option("--tree", help="Variants for tree masks, in place of those without."),
]
FamilyOption = Annotated[
    list[str] | None,
    typer.Option("--family", help="portable, or hopper (sm_90a alone); repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
