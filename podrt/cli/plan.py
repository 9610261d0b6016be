"""``podrt plan``: how batches are run, what that is predicted to take, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from podrt.cli._layer import (
    BatchesOption,
    BudgetOption,
    GpuOption,
    LayerDtype,
    LayerHeadDim,
    LayerHeads,
    LayerPageSize,
    LayerSoftCap,
    LayerVHeadDim,
    LayerWindow,
    MaxKvTokensOption,
    PolicyOption,
    batches_of_trace,
    scheduler_of,
)
from podrt.cli._options import JsonOption
from podrt.cli._output import print_json
from podrt.cli._unused import BATCHES, refuse_given
from podrt.policy.explain import Explanation, explain
from podrt.workloads.lengths import batch_of_lengths, parse_lengths


def plan(
    context: typer.Context,
    batch: Annotated[
        str | None, typer.Argument(help='Such as "2048@16384 + 64x16384": a chunk, and decodes.')
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV of requests, in place of a batch."),
    ] = None,
    budget: BudgetOption = 512,
    batches: BatchesOption = 4,
    max_kv_tokens: MaxKvTokensOption = 65536,
    heads: LayerHeads = "32/8",
    head_dim: LayerHeadDim = 128,
    v_head_dim: LayerVHeadDim = None,
    page_size: LayerPageSize = "16",
    dtype: LayerDtype = "bfloat16",
    window_left: LayerWindow = None,
    soft_cap: LayerSoftCap = None,
    policy: PolicyOption = "auto",
    gpu: GpuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a batch is run, what else there was to choose, predicted times, and why. No GPU.

    The choice is made by rules, not by the predictions, which the Hopper family alone has. Batches
    of a trace are those that `podrt demo` would run. Example:
    podrt plan "2048@16384 + 64x16384" --heads 32/8 --gpu h100
    """
    if batch is not None and trace is not None:
        raise ValueError(f"batch={batch!r} and --trace {trace}: pass one of them, not both")
    if batch is None and trace is None:
        raise ValueError('pass a batch, such as "2048@16384 + 64x16384", or --trace FILE')
    if trace is None:
        refuse_given(context, BATCHES, "for batches of --trace; pass it, or leave them out")
        named = [(batch or "", parse_lengths(batch or ""))]
    else:
        found = batches_of_trace(trace, budget=budget, batches=batches, max_kv_tokens=max_kv_tokens)
        named = [(f"{trace.stem} #{number}", lengths) for number, lengths in enumerate(found)]
    scheduler = scheduler_of(
        heads, head_dim, page_size, dtype, policy, gpu, window_left, soft_cap, v_head_dim
    )
    explained = [
        (name, explain(scheduler, batch_of_lengths(requests, scheduler.spec.page_size)))
        for name, requests in named
    ]
    _print(explained, as_json)


def _print(found: list[tuple[str, Explanation]], as_json: bool) -> None:
    if as_json:
        print_json([{"name": name, **each.to_dict()} for name, each in found])
        return
    typer.echo("\n\n".join(f"{name}\n{each}" for name, each in found))
