"""``podrt warmup``: compile variants ahead of time, so that no request waits for a compiler."""

from __future__ import annotations

import time
from collections import Counter
from enum import StrEnum
from typing import Annotated

import typer

from podrt.cli._building import build_all
from podrt.cli._output import console, print_json
from podrt.cli._variants import (
    ArchOption,
    DecodeRowsOption,
    DtypeOption,
    FamilyOption,
    FormOption,
    HeadDimOption,
    JsonOption,
    PageSizeOption,
    select,
)


class Preset(StrEnum):
    """What `podrt warmup` compiles when no filter narrows it."""

    paged16 = "paged16"
    all = "all"


#: Page sizes of each preset; None = every one.
_PAGE_SIZES: dict[Preset, list[str] | None] = {Preset.paged16: ["16"], Preset.all: None}


def warmup(
    arch: ArchOption = None,
    family: FamilyOption = None,
    form: FormOption = None,
    dtype: DtypeOption = None,
    head_dim: HeadDimOption = None,
    page_size: PageSizeOption = None,
    decode_rows: DecodeRowsOption = None,
    preset: Annotated[
        Preset,
        typer.Option(help="paged16: what a server with 16-token pages uses; all: every variant."),
    ] = Preset.paged16,
    as_json: JsonOption = False,
) -> None:
    """Compile variants into the cache without running them; needs no GPU.

    A preset says where to start and the filters narrow it; --page-size replaces the preset's. For
    an image of a server on Hopper: podrt warmup --arch sm_90a --dtype bfloat16 --head-dim 128
    """
    configs = select(
        archs=arch,
        families=family,
        forms=form,
        dtypes=dtype,
        head_dims=head_dim,
        page_sizes=page_size or _PAGE_SIZES[preset],
        decode_rows=decode_rows,
    )
    begin_s = time.perf_counter()
    builds = build_all(configs)
    elapsed_s = time.perf_counter() - begin_s
    origins = Counter("compiled" if b.origin == "compiled" else "cached" for b in builds)
    if as_json:
        print_json(
            {
                "compiled": origins["compiled"],
                "cached": origins["cached"],
                "elapsed_s": round(elapsed_s, 3),
                "variants": [config.name for config in configs],
            }
        )
        return
    console().print(
        f"{len(builds)} variants: {origins['compiled']} compiled, {origins['cached']} "
        f"already cached, in {elapsed_s:.1f} s"
    )
