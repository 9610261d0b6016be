"""``podrt explore``: the kernel variants, their texts, and what the compiler made of them."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.syntax import Syntax
from rich.table import Table

from podrt.cli._building import build_all
from podrt.cli._layer import (
    GpuOption,
    LayerDtype,
    LayerHeadDim,
    LayerHeads,
    LayerPageSize,
    LayerSoftCap,
    LayerVHeadDim,
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
    TreeOption,
    VHeadDimOption,
    WordsArgument,
)
from podrt.cli._output import console, print_json, table
from podrt.cli._stats import print_mixes, print_phases, print_smem, print_stats
from podrt.cli._unused import LAYER, refuse_given
from podrt.cli.explore_check import check
from podrt.cli.explore_report import report
from podrt.cli.explore_repro import repro
from podrt.cli.explore_roofline import roofline
from podrt.cli.explore_sweep import sweep
from podrt.cli.explore_trace import trace
from podrt.explore.listing import LEXERS, What, columns_of, diff_of, text_of
from podrt.explore.mix import instruction_mix
from podrt.explore.names import alias_of, grouped, narrow, pages_of, the_one, tiles_of
from podrt.explore.select import completions, find, select
from podrt.explore.stats import stats_of
from podrt.jit import compile_phases, disassemble
from podrt.kernels.families import Variant, source_of
from podrt.kernels.variant import DTYPE_TAGS
from podrt.workloads.lengths import batch_of_lengths, parse_lengths

#: Options of `show` that say which layer runs a batch, where, and under which policy.
_OF_A_BATCH = (*LAYER, "window_left", "soft_cap", "policy", "gpu")

app = typer.Typer(
    help="The kernel variants: list them, read their code, see their resources. Needs no GPU.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

for command in (check, sweep, report, repro, roofline, trace):
    app.command()(command)


@app.command("list")
def list_variants(
    words: WordsArgument = None,
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
    as_json: JsonOption = False,
) -> None:
    """List the variants that words select and that pass every filter; names state all parameters.

    On a terminal, variants that differ in element type and pages alone share a line, and go by
    aliases; in a pipe: one full name a line. Examples: podrt explore list pod d128;
    podrt explore list --form pod --head-dim 80 --tree
    """
    configs = select(
        words or [],
        archs=arch,
        families=family,
        forms=form,
        dtypes=dtype,
        head_dims=head_dim,
        v_head_dims=v_head_dim,
        page_sizes=page_size,
        decode_rows=decode_rows,
        masks=mask,
        soft_caps=[True] if capped else None,
        tree_masks=[True] if tree else None,
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


@app.command()
def show(
    context: typer.Context,
    variant: Annotated[
        list[str] | None,
        typer.Argument(
            help="Its alias, words of it, field=value, or a piece of its full name.",
            autocompletion=completions,
        ),
    ] = None,
    what: Annotated[What, typer.Option(help="Which text of the variant.")] = What.source,
    diff: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER",
            help="Show what differs in another variant.",
            autocompletion=completions,
        ),
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="Show what differs in two columns; with --diff.")
    ] = False,
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
    v_head_dim: LayerVHeadDim = None,
    page_size: LayerPageSize = "16",
    dtype: LayerDtype = "bfloat16",
    window_left: LayerWindow = None,
    soft_cap: LayerSoftCap = None,
    policy: PolicyOption = "auto",
    gpu: GpuOption = None,
) -> None:
    """Print a variant's rendered source, PTX, SASS, compiler log or config.

    In front of SASS stands what the scheduler is told: barriers to wait for, barriers that the
    instruction holds, whether the warp may yield, and for how many cycles it stalls. "lines" is
    SASS below the source lines that it comes from.

    On a terminal with colours and line numbers, in a pipe as plain text. Where words fit variants
    of several architectures, this GPU's is meant, unless --arch says which. Examples:
    podrt explore show pod hopper bf16 d128 page16 r8 --what ptx;
    podrt explore show --batch "2048@16384 + 64x16384" --heads 32/8 --gpu h100 --what config
    """
    if columns and diff is None:
        raise ValueError("--columns is how --diff shows two variants: pass --diff OTHER too")
    _require_used(context, has_batch=batch is not None, has_diff=diff is not None)
    if batch is None and not variant:
        raise ValueError('pass a variant, such as pod-hopper-bf16-d128-page16-r8, or --batch "..."')
    if batch is None:
        config = find(variant or [], arch)
    else:
        scheduler = scheduler_of(
            heads, head_dim, page_size, dtype, policy, gpu, window_left, soft_cap, v_head_dim
        )
        lengths = batch_of_lengths(parse_lengths(batch), scheduler.spec.page_size)
        running = narrow(scheduler.schedule(lengths).variants, variant or [])
        config = the_one(running, batch)
        console(stderr=True).print(f"{alias_of(config)} runs {batch}", markup=False)
    if diff is None:
        _print_text(text_of(config, what), LEXERS[what], numbered=True)
        return
    other = find(diff.split(), arch)
    if columns:
        text = columns_of(config, other, what, console().width)
        typer.echo(text or f"No difference in {what.value}.")
        return
    text = diff_of(config, other, what)
    _print_text(text or f"No difference in {what.value}.", "diff", numbered=False)


@app.command()
def stats(
    words: WordsArgument = None,
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
    mix: Annotated[
        bool, typer.Option("--mix", help="Show kinds of instructions instead; needs nvdisasm.")
    ] = False,
    smem: Annotated[
        bool, typer.Option("--smem", help="Show what lies in shared memory instead.")
    ] = False,
    phases: Annotated[
        bool,
        typer.Option("--phases", help="Compile anew and show how long each phase takes instead."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compile variants and show registers, shared memory, spills and CTAs per SM.

    Warpgroups of a Hopper kernel have registers by role: producer/decode/prefill, or those of them
    that it has. The column "limit" names what stops one more CTA on an SM, "s" the seconds NVRTC
    took, "from" where the build came from. `--mix` counts instructions by kind, as they stand in
    the binary; those of loops run more than once. `--smem` shows the parts of shared memory, some
    of which overlap, as they are in use at different times; it compiles nothing.
    Examples: podrt explore stats pod hopper bf16 d128 page16;
    podrt explore stats --arch sm_80 --head-dim 64
    """
    if mix + smem + phases > 1:
        raise ValueError("--mix, --smem and --phases each show another table: pass one of them")
    configs = select(
        words or [],
        archs=arch,
        families=family,
        forms=form,
        dtypes=dtype,
        head_dims=head_dim,
        v_head_dims=v_head_dim,
        page_sizes=page_size,
        decode_rows=decode_rows,
        masks=mask,
        soft_caps=[True] if capped else None,
        tree_masks=[True] if tree else None,
    )
    if smem and not as_json:
        print_smem(configs)
        return
    builds = build_all(configs)
    rows = [stats_of(*pair) for pair in zip(configs, builds, strict=True)]
    mixes = [instruction_mix(disassemble(build.cubin)) for build in builds] if mix else []
    times = [compile_phases(source_of(config)) for config in configs] if phases else []
    if as_json:
        more: list[dict[str, Any]] = [{"mix": each} for each in mixes]
        more += [{"phases_s": each} for each in times]
        more = more or [{}] * len(rows)
        print_json([row.to_dict() | extra for row, extra in zip(rows, more, strict=True)])
    elif mix:
        print_mixes([row.name for row in rows], mixes)
    elif phases:
        print_phases(rows, times)
    else:
        print_stats(rows)


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


def _require_used(context: typer.Context, *, has_batch: bool, has_diff: bool) -> None:
    """Refuse options of `show` that would be ignored."""
    if not has_batch:
        refuse_given(
            context,
            _OF_A_BATCH,
            "of the layer that runs --batch; without it words say what the variant is, such as d64 "
            "page16 f16",
        )
    elif not has_diff:
        refuse_given(context, ("arch",), "--batch is run on a GPU; say which with --gpu")


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
