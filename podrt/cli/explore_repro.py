"""``podrt explore repro``: a folder that builds and runs one variant by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from podrt.bench.sweep.axes import combinations, parse_axes
from podrt.cli._options import ArchOption
from podrt.cli._output import console
from podrt.explore.alone import Alone, alone, edge_lengths, gpu_for, layer_for
from podrt.explore.names import alias_of, narrow, the_one
from podrt.explore.repro import Repro, write_repro
from podrt.explore.select import completions, find
from podrt.policy.schedule import Scheduler
from podrt.workloads.lengths import batch_of_lengths, parse_heads, parse_lengths


def repro(
    variant: Annotated[
        list[str],
        typer.Argument(
            help="Its alias, words of it, field=value, or a piece of its full name.",
            autocompletion=completions,
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", file_okay=False, help="A new or empty folder.")
    ],
    arch: ArchOption = None,
    batch: Annotated[
        str | None,
        typer.Option(help='Such as "300@1000 + 8x2000". Default: the edges of its tiles.'),
    ] = None,
    heads: Annotated[
        str, typer.Option("--heads", metavar="QO/KV", help="Query and KV heads.")
    ] = "8/2",
    fix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Fix a field of podrt.Policy too, as of podrt explore sweep; repeatable.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of inputs and pages.")] = 0,
) -> None:
    """Write a folder that builds and runs one variant by itself, without podrt. Needs no GPU.

    It has the whole source in one file, the plan, a short runner that makes inputs from the seed
    and compares with float64, and the commands for ncu and compute-sanitizer. Examples:

    podrt explore repro pod hopper bf16 d128 page16 r8 -o repro

    podrt explore repro pod hopper bf16 d128 page16 r8 --fix prefill_tile_keys=96 -o repro
    """
    base = find(variant, arch)
    qo, kv = parse_heads(heads)
    layer, gpu = layer_for(base, qo, kv), gpu_for(base)
    lengths = tuple(edge_lengths(base, layer.group) if batch is None else parse_lengths(batch))
    lengths_in_cache = batch_of_lengths(lengths, layer.page_size)
    found = alone(base, layer, lengths_in_cache, gpu)
    config = base
    if fix:
        policy = found.policy
        grid, refused = combinations(parse_axes([*fix, f"family={base.family}"]))
        if refused or len(grid) != 1:
            raise ValueError(refused[0].reason if refused else "--fix: give one value a name")
        policy = grid[0].over(policy)
        schedule = Scheduler(layer, gpu, policy).schedule(lengths_in_cache)
        config = the_one(narrow(schedule.variants, []), f"{alias_of(base)} {' '.join(fix)}")
        found = Alone(policy, schedule)
    files = write_repro(Repro(config, layer, lengths, gpu, found, seed), out)
    for path in files:
        typer.echo(path)
    console(stderr=True).print(f"{config.name}; next: cd {out} && python run.py", markup=False)
