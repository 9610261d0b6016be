"""The demo without a GPU: compile, and check plans by walking them in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from podrt.cli._building import build_all
from podrt.cli._check import expected_of
from podrt.cli._variants import FALLBACK_ARCH
from podrt.kernels.families import Variant, all_default_variants
from podrt.plan import make_plan
from podrt.policy.dispatch import Policy, base_variant, parse_policy, tiling_of
from podrt.reference import check_plan, execute_plan, flat_page_table
from podrt.spec.attention import Layer
from podrt.workloads.chunked_prefill import Request, hybrid_steps
from podrt.workloads.random_batch import Geometry, Workload, make_workload

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
    families : tuple of str
        Kernel families that were compiled and planned for.
    variants, compiled : int
        Variants in all, and those that were not in the cache.
    prefills, decodes, tokens : int
        The batch that was planned.
    error : float
        Largest error of any family's plan, relative to the largest value of its row.
    ok : bool
        The error is within `DRY_RUN_TOLERANCE`.
    """

    arch: str
    families: tuple[str, ...]
    variants: int
    compiled: int
    prefills: int
    decodes: int
    tokens: int
    error: float
    ok: bool


def dry_run(
    requests: Sequence[Request], geometry: Geometry, policy: str, rng: np.random.Generator
) -> DryRun:
    """Compile the variants of `geometry`, and walk the plans of a small batch of the trace.

    Both is done for every kernel family that `policy` may choose, on one GPU or another.
    """
    layer, parsed = geometry.layer(), parse_policy(policy)
    short = [replace(r, prompt_tokens=min(r.prompt_tokens, _MAX_PROMPT_TOKENS)) for r in requests]
    (step,) = hybrid_steps(short, budget=_BUDGET, max_kv_tokens=_MAX_KV_TOKENS, count=1)
    work = make_workload(step, geometry, rng)
    bases = _bases(work, layer, parsed)
    configs = all_default_variants(
        FALLBACK_ARCH,
        families=[base.family for base in bases],
        dtypes=[geometry.dtype],
        head_dims=[geometry.head_dim],
        page_sizes=[geometry.page_size],
    )
    builds = build_all(configs, f"compiling for {FALLBACK_ARCH}")
    expected = expected_of(work)
    # NumPy's max keeps a NaN, which is never within tolerance.
    error = float(np.max([expected.error_of(_walk(base, work, layer)) for base in bases]))
    return DryRun(
        arch=FALLBACK_ARCH,
        families=tuple(base.family for base in bases),
        variants=len(configs),
        compiled=sum(build.origin == "compiled" for build in builds),
        prefills=step.num_prefills,
        decodes=step.num_decodes,
        tokens=step.total_tokens,
        error=error,
        ok=error <= DRY_RUN_TOLERANCE,
    )


def _bases(work: Workload, layer: Layer, policy: Policy) -> list[Variant]:
    """Return the fused variant of every family that the policy may choose for the batch.

    ``"auto"`` takes the Hopper family only where it can, so what it takes elsewhere counts too.
    """
    policies = [policy]
    if policy.family == "auto":
        policies.append(replace(policy, family="portable"))
    found = [base_variant(work.batch, layer, each, arch=FALLBACK_ARCH) for each in policies]
    return list({base.family: base for base in found}.values())


def _walk(base: Variant, work: Workload, layer: Layer) -> npt.NDArray[np.float64]:
    """Plan as on a GPU and execute; raises ValueError if any pair is not computed exactly once."""
    plan = make_plan(
        work.batch,
        tiling_of(base, _NUM_SMS, layer.group),
        num_kv_heads=layer.num_kv_heads,
        group=layer.group,
        causal=layer.causal,
    )
    check_plan(plan, work.batch)
    out, _ = execute_plan(
        plan,
        work.q,
        work.k_cache,
        work.v_cache,
        page_table=flat_page_table(work.block_table),
        page_size=work.page_size,
    )
    return out
