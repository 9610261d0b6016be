"""The demo without a GPU: compile, and check plans by walking them in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from podrt.gpu.nominal import H100
from podrt.jit import Build
from podrt.kernels.families import Variant, all_default_variants
from podrt.policy.policies import Policy, parse_policy
from podrt.policy.schedule import Schedule, schedule
from podrt.reference import check_plan, execute_plan, flat_page_table
from podrt.spec.attention import AttentionSpec
from podrt.workloads.chunked_prefill import Request, hybrid_steps
from podrt.workloads.random_batch import Geometry, Workload, make_workload

#: Reference and executor both compute in float64.
DRY_RUN_TOLERANCE = 1e-9

#: The batch is small, as NumPy walks it tile by tile.
_MAX_PROMPT_TOKENS = 1000
_BUDGET = 64
_MAX_KV_TOKENS = 4096
#: The GPU that is compiled and planned for.
_GPU = H100


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
    requests: Sequence[Request],
    geometry: Geometry,
    policy: str,
    rng: np.random.Generator,
    *,
    build_all: Callable[[Sequence[Variant], str], list[Build]],
) -> DryRun:
    """Compile the variants of `geometry`, and walk the plans of a small batch of the trace.

    Both is done for every kernel family that `policy` may choose, on one GPU or another.

    Parameters
    ----------
    requests : sequence of Request
        The trace.
    geometry : Geometry
        Shape of the layer.
    policy : str
        As of `podrt.HybridAttention`.
    rng : Generator
        Source of the tensors.
    build_all : callable
        Compiles variants, with words that say what for.
    """
    layer, parsed = geometry.spec(), parse_policy(policy)
    short = [replace(r, prompt_tokens=min(r.prompt_tokens, _MAX_PROMPT_TOKENS)) for r in requests]
    (step,) = hybrid_steps(short, budget=_BUDGET, max_kv_tokens=_MAX_KV_TOKENS, count=1)
    work = make_workload(step, geometry, rng)
    schedules = _schedules(work, layer, parsed)
    configs = all_default_variants(
        _GPU.arch.name,
        families=[each.base.family for each in schedules],
        dtypes=[geometry.dtype],
        head_dims=[geometry.head_dim],
        page_sizes=[geometry.page_size],
    )
    builds = build_all(configs, f"compiling for {_GPU.arch.name}")
    expected = work.expected()
    # NumPy's max keeps a NaN, which is never within tolerance.
    error = float(
        np.max([expected.error_of(_walk(each, work)[expected.rows]) for each in schedules])
    )
    return DryRun(
        arch=_GPU.arch.name,
        families=tuple(each.base.family for each in schedules),
        variants=len(configs),
        compiled=sum(build.origin == "compiled" for build in builds),
        prefills=step.num_prefills,
        decodes=step.num_decodes,
        tokens=step.total_tokens,
        error=error,
        ok=error <= DRY_RUN_TOLERANCE,
    )


def _schedules(work: Workload, layer: AttentionSpec, policy: Policy) -> list[Schedule]:
    """Schedule the batch as on a GPU, once for every family that the policy may choose.

    ``"auto"`` takes the Hopper family only where it can, so what it takes elsewhere counts too.
    """
    policies = [policy]
    if policy.family == "auto":
        policies.append(replace(policy, family="portable"))
    found = [schedule(work.batch, layer, _GPU, each) for each in policies]
    return list({each.base.family: each for each in found}.values())


def _walk(scheduled: Schedule, work: Workload) -> npt.NDArray[np.float64]:
    """Execute the plan; raises ValueError if any pair is not computed exactly once."""
    check_plan(scheduled.plan, work.batch)
    out, _ = execute_plan(
        scheduled.plan,
        work.q,
        work.k_cache,
        work.v_cache,
        page_table=flat_page_table(work.block_table),
        page_size=work.page_size,
    )
    return out
