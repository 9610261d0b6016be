"""``podrt warmup``: compile variants ahead of time, so that no request waits for a compiler."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from podrt.cli._building import build_all
from podrt.cli._options import (
    ArchOption,
    CappedOption,
    DecodeRowsOption,
    DtypeOption,
    FamilyOption,
    FormOption,
    HeadDimOption,
    JsonOption,
    MaskOption,
    PageSizeOption,
    TreeOption,
    VHeadDimOption,
)
from podrt.cli._output import console, print_error, print_json
from podrt.cli.cache import disk_cache
from podrt.errors import PodrtError
from podrt.explore.select import select
from podrt.jit import DiskCache, KernelSource, recipe_of
from podrt.kernels.beside import sources_beside
from podrt.kernels.families import Variant, source_of


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
    v_head_dim: VHeadDimOption = None,
    page_size: PageSizeOption = None,
    decode_rows: DecodeRowsOption = None,
    mask: MaskOption = None,
    capped: CappedOption = False,
    tree: TreeOption = False,
    preset: Annotated[
        Preset,
        typer.Option(help="paged16: what a server with 16-token pages uses; all: every variant."),
    ] = Preset.paged16,
    as_json: JsonOption = False,
) -> None:
    """Compile variants into the cache without running them; needs no GPU.

    And the kernels that a server of such layers needs beside them: writes to pages, joins of shared
    prefixes, growth of plans.

    A preset says where to start and the filters narrow it; --page-size replaces the preset's. For
    an image of a server on Hopper: podrt warmup --arch sm_90a --dtype bfloat16 --head-dim 128

    Exit code: 0 when all of them are in the cache, 1 when some could not be stored, 2 when none can
    be.
    """
    configs = select(
        archs=arch,
        families=family,
        forms=form,
        dtypes=dtype,
        head_dims=head_dim,
        v_head_dims=v_head_dim,
        page_sizes=page_size or _PAGE_SIZES[preset],
        decode_rows=decode_rows,
        masks=mask,
        soft_caps=[capped],
        tree_masks=[tree],
    )
    cache, beside = disk_cache(), sources_beside(configs)
    _require_room(cache, configs, beside)
    begin_s = time.perf_counter()
    builds = build_all(configs, beside=beside)
    elapsed_s = time.perf_counter() - begin_s
    lost = [build.source.name for build in builds if not cache.holds(build.recipe)]
    origins = Counter("compiled" if b.origin == "compiled" else "cached" for b in builds)
    if as_json:
        print_json(
            {
                "compiled": origins["compiled"],
                "cached": origins["cached"],
                "elapsed_s": round(elapsed_s, 3),
                "variants": [config.name for config in configs],
                "beside": [source.name for source in beside],
                "not_stored": lost,
            }
        )
    else:
        console().print(
            f"{len(configs)} variants and {len(beside)} kernels beside them: "
            f"{origins['compiled']} compiled, {origins['cached']} already cached, "
            f"in {elapsed_s:.1f} s"
        )
    if lost:
        print_error(
            f"{len(lost)} of {len(builds)} kernels are not in {cache.path}: it cannot be written, "
            "or PODRT_CACHE_MAX_BYTES is too small for all of them"
        )
        raise typer.Exit(1)


def _require_room(
    cache: DiskCache, configs: Sequence[Variant], beside: Sequence[KernelSource]
) -> None:
    """Refuse before the first compilation what could not be stored after it."""
    if cache.is_writable:
        return
    sources = [*map(source_of, configs), *beside]
    missing = sum(not cache.holds(recipe_of(source)) for source in sources)
    if missing:
        raise PodrtError(
            f"{cache.path} cannot be written, and {missing} of {len(sources)} kernels are not "
            "there: set PODRT_CACHE_DIR to a folder that can be written"
        )
