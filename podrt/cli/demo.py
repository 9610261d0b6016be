"""``podrt demo``: hybrid batches of a trace through the fused kernel, checked and timed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from podrt.bench.fused import Outcome, baseline_of, compete
from podrt.cli._building import build_all
from podrt.cli._demo_report import report, report_dry_run
from podrt.cli._output import progress
from podrt.errors import DeviceError
from podrt.explore.dry_run import dry_run
from podrt.gpu.device import current_device
from podrt.spec.types import DType
from podrt.workloads.chunked_prefill import Request, hybrid_steps, read_trace, sample_trace
from podrt.workloads.files import named_by
from podrt.workloads.lengths import parse_paged
from podrt.workloads.random_batch import Geometry, make_workload

_SEED = 0


def demo(
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV of requests. Default: the sample podrt ships."),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Query tokens of one batch.")] = 512,
    batches: Annotated[int, typer.Option(min=1, help="Batches to run.")] = 4,
    max_kv_tokens: Annotated[
        int, typer.Option(min=1, help="Room of the KV cache in tokens; bounds the decodes.")
    ] = 65536,
    num_qo_heads: Annotated[int, typer.Option(min=1, help="Query heads.")] = 32,
    num_kv_heads: Annotated[int, typer.Option(min=1, help="KV heads.")] = 8,
    head_dim: Annotated[int, typer.Option(help="A multiple of 8 from 32 to 256.")] = 128,
    page_size: Annotated[
        str, typer.Option(metavar="TOKENS", help="Tokens of a page; the demo's cache is paged.")
    ] = "16",
    dtype: Annotated[DType, typer.Option(help="Element type.")] = "bfloat16",
    policy: Annotated[
        str,
        typer.Option(help="auto, hopper, portable, proportional, 50:50 or a prefill:decode ratio."),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Run hybrid batches of a trace in one launch each, check them, and time fused against serial.

    The trace is served by chunked prefill on a saturated server; batches with both prefill and
    decode are taken from all over the schedule. Tensors are random, pages shuffled, and cache slots
    that no request owns hold NaN. Results are compared with a float64 reference. Times are medians
    with a cold L2 cache; "serial" is the same family's prefill kernel, then its decode kernel.

    Without a GPU: compiles the variants for sm_90a and checks the plans of one small batch of the
    trace in NumPy, whatever --budget, --batches and --max-kv-tokens say; for every family that
    --policy may choose.

    Exit code: 0 when every error is within tolerance, 1 when one is not.
    """
    baseline = baseline_of(policy)
    requests = _requests(trace)
    pages = parse_paged(page_size, "podrt demo")
    geometry = Geometry(num_qo_heads, num_kv_heads, head_dim, pages, dtype)
    try:
        device = current_device()
    except DeviceError as error:
        rng = np.random.default_rng(_SEED)
        result = dry_run(requests, geometry, policy, rng, build_all=build_all)
        report_dry_run(result, str(error), as_json)
        raise typer.Exit(0 if result.ok else 1) from None
    outcomes = _run(requests, geometry, policy, budget, max_kv_tokens, batches)
    report(outcomes, device, geometry, (policy, baseline), as_json)
    raise typer.Exit(0 if all(outcome.ok for outcome in outcomes) else 1)


def _requests(trace: Path | None) -> list[Request]:
    if trace is None:
        return sample_trace()
    with named_by("--trace", trace):
        return read_trace(trace)


def _run(
    requests: list[Request],
    geometry: Geometry,
    policy: str,
    budget: int,
    max_kv_tokens: int,
    batches: int,
) -> list[Outcome]:
    rng = np.random.default_rng(_SEED)
    outcomes = []
    steps = hybrid_steps(requests, budget=budget, max_kv_tokens=max_kv_tokens, count=batches)
    with progress("compiling, running, checking", len(steps)) as advance:
        for step in steps:
            outcomes.append(compete(make_workload(step, geometry, rng), geometry, policy))
            advance()
    return outcomes
