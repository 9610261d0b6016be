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
from podrt.policy.schedule import Scheduler
from podrt.spec.batch import HybridBatch
from podrt.spec.prefixes import checked_prefixes, sharing
from podrt.tensors.shared_prefixes import require_shareable
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
    shared_keys: Annotated[
        int | None,
        typer.Option(help="First keys of all decodes of the batch that are the same: whole pages."),
    ] = None,
    policy: PolicyOption = "auto",
    gpu: GpuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a batch is run, what else there was to choose, predicted times, and why. No GPU.

    The choice is made by rules, not by the predictions, which the Hopper family alone has. Batches
    of a trace are those that `podrt demo` would run. Example:
    podrt plan "2048@16384 + 64x16384" --heads 32/8 --gpu h100

    With --shared-keys, keys that the decodes share are read once for all of them.
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
    if shared_keys is not None and trace is not None:
        raise ValueError(f"--shared-keys {shared_keys}: is for a batch, not for those of --trace")
    explained = []
    for name, requests in named:
        lengths = batch_of_lengths(requests, scheduler.spec.page_size)
        if shared_keys is not None:
            lengths = _sharing(lengths, shared_keys, scheduler)
        explained.append((name, explain(scheduler, lengths)))
    _print(explained, as_json)


def _sharing(batch: HybridBatch, keys: int, scheduler: Scheduler) -> HybridBatch:
    """Return a batch whose decodes share their first keys."""
    decodes = (batch.q_lens == 1).nonzero()[0].tolist()
    if len(decodes) < 2 or decodes[-1] - decodes[0] != len(decodes) - 1:
        raise ValueError(
            f"--shared-keys {keys}: the batch has {len(decodes)} decodes; expected two or more, "
            "one after another"
        )
    try:
        require_shareable(scheduler.spec, deterministic=scheduler.policy.deterministic)
        return sharing(batch, checked_prefixes(batch, [(decodes[0], decodes[-1] + 1, keys)]))
    except ValueError as error:
        raise ValueError(f"--shared-keys {keys}: {error}") from error


def _print(found: list[tuple[str, Explanation]], as_json: bool) -> None:
    if as_json:
        print_json([{"name": name, **each.to_dict()} for name, each in found])
        return
    typer.echo("\n\n".join(f"{name}\n{each}" for name, each in found))
