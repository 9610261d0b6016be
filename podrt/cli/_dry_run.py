"""The demo without a GPU: compile, and check a plan by walking it in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from podrt.batching import Request, hybrid_steps
from podrt.cli._building import build_all
from podrt.cli._check import expected_of
from podrt.cli._variants import FALLBACK_ARCH
from podrt.cli._workload import Geometry, Workload, make_workload
from podrt.dispatch import base_variant, tiling_of
from podrt.kernels.variants import default_variants
from podrt.layer import Layer
from podrt.plan import Plan, make_plan
from podrt.reference import check_plan, execute_plan, flat_page_table

#: Reference and executor both compute in float64.
DRY_RUN_TOLERANCE = 1e-9

#: The batch is small, as NumPy walks it tile by tile.
_MAX_PROMPT_TOKENS = 1000
_BUDGET = 64
_MAX_KV_TOKENS = 4096
#: SMs of the GPU that is planned for, an H100.
_NUM_SMS = 132


@dataclass(frozen=True)
class DryRun:
    """What could be checked.

    Attributes
    ----------
    arch : str
        Architecture that was compiled for.
    variants, compiled : int
        Variants in all, and those that were not in the cache.
    prefills, decodes, tokens : int
        The batch that was planned.
    error : float
        Largest error relative to the largest value of its row.
    ok : bool
        The error is within `DRY_RUN_TOLERANCE`.
    """

    arch: str
    variants: int
    compiled: int
    prefills: int
    decodes: int
    tokens: int
    error: float
    ok: bool


def dry_run(requests: Sequence[Request], geometry: Geometry, rng: np.random.Generator) -> DryRun:
    """Compile the variants of `geometry`, and walk the plan of a small batch of the trace."""
    layer = geometry.layer()
    configs = default_variants(
        FALLBACK_ARCH,
        dtypes=[geometry.dtype],
        head_dims=[geometry.head_dim],
        page_sizes=[geometry.page_size],
    )
    builds = build_all(configs, f"compiling for {FALLBACK_ARCH}")
    short = [replace(r, prompt_tokens=min(r.prompt_tokens, _MAX_PROMPT_TOKENS)) for r in requests]
    (step,) = hybrid_steps(short, budget=_BUDGET, max_kv_tokens=_MAX_KV_TOKENS, count=1)
    work = make_workload(step, geometry, rng)
    plan = _plan(work, layer)
    out, _ = execute_plan(
        plan,
        work.q,
        work.k_cache,
        work.v_cache,
        page_table=flat_page_table(work.block_table),
        page_size=work.page_size,
    )
    error = expected_of(work).error_of(out)
    return DryRun(
        arch=FALLBACK_ARCH,
        variants=len(configs),
        compiled=sum(build.origin == "compiled" for build in builds),
        prefills=step.num_prefills,
        decodes=step.num_decodes,
        tokens=step.total_tokens,
        error=error,
        ok=error <= DRY_RUN_TOLERANCE,
    )


def _plan(work: Workload, layer: Layer) -> Plan:
    """Plan the batch as on a GPU; raises ValueError if any pair is not computed exactly once."""
    config = base_variant(work.batch, layer, arch=FALLBACK_ARCH, num_sms=_NUM_SMS)
    plan = make_plan(
        work.batch,
        tiling_of(config, _NUM_SMS),
        num_kv_heads=layer.num_kv_heads,
        group=layer.group,
        causal=layer.causal,
    )
    check_plan(plan, work.batch)
    return plan
