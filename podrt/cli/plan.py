"""``podrt plan``: how batches are run, what that is predicted to take, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from podrt.cli._layer import GPU_NAMES, scheduler_of
from podrt.cli._output import print_json
from podrt.policy.explain import Explanation, explain
from podrt.workloads.chunked_prefill import hybrid_steps, read_trace
from podrt.workloads.lengths import batch_of_lengths, parse_lengths


def plan(
    batch: Annotated[
        str | None, typer.Argument(help='Such as "2048@16384 + 64x16384": a chunk, and decodes.')
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV of requests, in place of a batch."),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Query tokens of a batch of a trace.")] = 512,
    batches: Annotated[int, typer.Option(min=1, help="Batches of a trace.")] = 4,
    max_kv_tokens: Annotated[
        int, typer.Option(min=1, help="Room of a trace's KV cache; bounds the decodes.")
    ] = 65536,
    heads: Annotated[str, typer.Option(metavar="QO/KV", help="Query and KV heads.")] = "32/8",
    head_dim: Annotated[int, typer.Option(help="64, 128 or 256.")] = 128,
    page_size: Annotated[int, typer.Option(min=0, help="Tokens of a page; 0: contiguous.")] = 16,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16.")] = "bfloat16",
    policy: Annotated[str, typer.Option(help="As of podrt.HybridAttention.")] = "auto",
    gpu: Annotated[
        str | None, typer.Option(help=f"{GPU_NAMES}. Default: this GPU, else h100.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show how a batch is run, what else there was to choose, predicted times, and why. No GPU.

    The choice is made by rules, not by the predictions, which the Hopper family alone has. Batches
    of a trace are those that `podrt demo` would run. Example:
    podrt plan "2048@16384 + 64x16384" --heads 32/8 --gpu h100
    """
    if (batch is None) == (trace is None):
        raise ValueError('pass a batch, such as "2048@16384 + 64x16384", or --trace FILE')
    if trace is None:
        named = [(batch or "", parse_lengths(batch or ""))]
    else:
        steps = hybrid_steps(
            read_trace(trace), budget=budget, max_kv_tokens=max_kv_tokens, count=batches
        )
        lengths = [zip(step.q_lens.tolist(), step.kv_lens.tolist(), strict=True) for step in steps]
        named = [(f"{trace.stem} #{number}", list(each)) for number, each in enumerate(lengths)]
    scheduler = scheduler_of(heads, head_dim, page_size, dtype, policy, gpu)
    found = [
        (name, explain(scheduler, batch_of_lengths(requests, page_size or None)))
        for name, requests in named
    ]
    _print(found, as_json)


def _print(found: list[tuple[str, Explanation]], as_json: bool) -> None:
    if as_json:
        print_json([{"name": name, **each.to_dict()} for name, each in found])
        return
    typer.echo("\n\n".join(f"{name}\n{each}" for name, each in found))
