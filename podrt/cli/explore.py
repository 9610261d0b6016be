"""``podrt explore``: the kernel variants, their texts, and what the compiler made of them."""

from __future__ import annotations

import sys
from itertools import takewhile
from typing import Annotated, Any

import typer
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from podrt.cli._building import build_all
from podrt.cli._layer import (
    GpuOption,
    LayerDtype,
    LayerHeadDim,
    LayerHeads,
    LayerPageSize,
    LayerSoftCap,
    LayerWindow,
    PolicyOption,
    scheduler_of,
)
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
)
from podrt.cli._output import console, print_json, table
from podrt.cli._times import roofline, trace
from podrt.cli.explore_check import check
from podrt.cli.explore_report import report
from podrt.cli.explore_repro import repro
from podrt.cli.explore_sweep import sweep
from podrt.explore.listing import LEXERS, What, diff_of, text_of
from podrt.explore.mix import instruction_mix
from podrt.explore.names import alias_of, grouped, narrow, pages_of, the_one, tiles_of
from podrt.explore.select import find, select
from podrt.explore.stats import VariantStats, stats_of
from podrt.jit import disassemble
from podrt.kernels.families import Variant
from podrt.kernels.variant import DTYPE_TAGS
from podrt.workloads.lengths import batch_of_lengths, parse_lengths

app = typer.Typer(
    help="The kernel variants: list them, read their code, see their resources. Needs no GPU.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

for command in (check, sweep, report, repro, roofline, trace):
    app.command()(command)

#: A narrower terminal gets names without the parts that all rows share.
_FULL_NAMES_WIDTH = 150


@app.command("list")
def list_variants(
    arch: ArchOption = None,
    family: FamilyOption = None,
    form: FormOption = None,
    dtype: DtypeOption = None,
    head_dim: HeadDimOption = None,
    page_size: PageSizeOption = None,
    decode_rows: DecodeRowsOption = None,
    mask: MaskOption = None,
    capped: CappedOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the names of the variants that pass every filter; a name states all parameters.

    On a terminal, variants that differ in element type and pages alone share a line, and go by
    aliases; in a pipe: one full name a line. Example: podrt explore list --form pod --head-dim 128
    """
    configs = select(
        archs=arch,
        families=family,
        forms=form,
        dtypes=dtype,
        head_dims=head_dim,
        page_sizes=page_size,
        decode_rows=decode_rows,
        masks=mask,
        soft_caps=[capped],
    )
    if as_json:
        print_json([_described(config) for config in configs])
        return
    if sys.stdout.isatty():
        console().print(alias_table(configs))
    else:
        for config in configs:
            typer.echo(config.name)
    console(stderr=True).print(f"{len(configs)} variants")


def _completions(incomplete: str) -> list[str]:
    """Return aliases for the shell to complete, those of this GPU's architecture."""
    return [alias for v in select() if (alias := alias_of(v)).startswith(incomplete)]


@app.command()
def show(
    variant: Annotated[
        list[str] | None,
        typer.Argument(
            help="Its alias, words of it, field=value, or a piece of its full name.",
            autocompletion=_completions,
        ),
    ] = None,
    what: Annotated[What, typer.Option(help="Which text of the variant.")] = What.source,
    diff: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Show what differs in another variant.")
    ] = None,
    arch: ArchOption = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help='The one that runs a batch, such as "2048@16384 + 64x16384", of the layer, GPU '
            "and policy that the options below say."
        ),
    ] = None,
    heads: LayerHeads = "32/8",
    head_dim: LayerHeadDim = 128,
    page_size: LayerPageSize = 16,
    dtype: LayerDtype = "bfloat16",
    window_left: LayerWindow = None,
    soft_cap: LayerSoftCap = None,
    policy: PolicyOption = "auto",
    gpu: GpuOption = None,
) -> None:
    """Print a variant's rendered source, PTX, SASS, compiler log or config.

    On a terminal with colours and line numbers, in a pipe as plain text. Where words fit variants
    of several architectures, this GPU's is meant, unless --arch says which. Examples:
    podrt explore show pod hopper bf16 d128 page16 r8 --what ptx;
    podrt explore show --batch "2048@16384 + 64x16384" --heads 32/8 --gpu h100 --what config
    """
    if batch is None and not variant:
        raise ValueError('pass a variant, such as pod-hopper-bf16-d128-page16-r8, or --batch "..."')
    if batch is None:
        config = find(variant or [], arch)
    else:
        scheduler = scheduler_of(
            heads, head_dim, page_size, dtype, policy, gpu, window_left, soft_cap
        )
        lengths = batch_of_lengths(parse_lengths(batch), page_size or None)
        running = narrow(scheduler.schedule(lengths).variants, variant or [])
        config = the_one(running, batch)
        console(stderr=True).print(f"{alias_of(config)} runs {batch}", markup=False)
    if diff is None:
        _print_text(text_of(config, what), LEXERS[what], numbered=True)
        return
    other = find(diff.split(), arch)
    text = diff_of(config, other, what)
    _print_text(text or f"No difference in {what.value}.", "diff", numbered=False)


@app.command()
def stats(
    arch: ArchOption = None,
    family: FamilyOption = None,
    form: FormOption = None,
    dtype: DtypeOption = None,
    head_dim: HeadDimOption = None,
    page_size: PageSizeOption = None,
    decode_rows: DecodeRowsOption = None,
    mask: MaskOption = None,
    capped: CappedOption = False,
    mix: Annotated[
        bool, typer.Option("--mix", help="Show kinds of instructions instead; needs nvdisasm.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compile variants and show registers, shared memory, spills and CTAs per SM.

    Warpgroups of a Hopper kernel have registers by role: producer/decode/prefill, or those of them
    that it has. The column "limit" names what stops one more CTA on an SM, "s" the seconds NVRTC
    took, "from" where the build came from. `--mix` counts instructions by kind, as they stand in
    the binary; those of loops run more than once.
    Example: podrt explore stats --arch sm_80 --head-dim 64
    """
    configs = select(
        archs=arch,
        families=family,
        forms=form,
        dtypes=dtype,
        head_dims=head_dim,
        page_sizes=page_size,
        decode_rows=decode_rows,
        masks=mask,
        soft_caps=[capped],
    )
    builds = build_all(configs)
    rows = [stats_of(*pair) for pair in zip(configs, builds, strict=True)]
    mixes = [instruction_mix(disassemble(build.cubin)) for build in builds] if mix else []
    if as_json:
        extra = [{"mix": each} for each in mixes] or [{}] * len(rows)
        print_json([row.to_dict() | more for row, more in zip(rows, extra, strict=True)])
    elif mix:
        _print_mixes([row.name for row in rows], mixes)
    else:
        _print_stats(rows)


def alias_table(configs: list[Variant]) -> Table:
    """Return a line for variants that differ in element type and pages alone."""
    result = table("alias, less type and pages", "types", "pages", "tiles")
    for alias, group in grouped(configs).items():
        result.add_row(
            alias,
            ", ".join(dict.fromkeys(DTYPE_TAGS[v.dtype] for v in group)),
            ", ".join(dict.fromkeys(pages_of(v) for v in group)),
            " | ".join(dict.fromkeys(tiles_of(v) for v in group)),
        )
    return result


def _described(config: Variant) -> dict[str, Any]:
    return {
        "name": config.name,
        "family": config.family,
        **config.to_dict(),
        "smem_bytes": config.smem_bytes,
    }


def _print_text(text: str, lexer: str, *, numbered: bool) -> None:
    if sys.stdout.isatty():
        console().print(Syntax(text, lexer, line_numbers=numbered, word_wrap=True))
    else:
        typer.echo(text)


def _print_stats(rows: list[VariantStats]) -> None:
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


def _print_mixes(names: list[str], mixes: list[dict[str, int]]) -> None:
    shown, title = shorten(names)
    kinds = [kind for kind in mixes[0] if any(mix[kind] for mix in mixes)]
    result = table("variant", *kinds, title=title, numbers=tuple(kinds))
    for name, mix in zip(shown, mixes, strict=True):
        result.add_row(name, *(str(mix[kind]) for kind in kinds))
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
