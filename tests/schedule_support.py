"""Batches of plain lists, scheduled for an H100."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from podrt.gpu.arch import get_arch
from podrt.gpu.nominal import H100
from podrt.kernels.variant import Form
from podrt.plan import Plan
from podrt.policy.policies import Policy, parse_policy
from podrt.policy.schedule import Schedule, schedule
from podrt.reference import check_plan, execute_plan, reference_attention
from podrt.spec.attention import AttentionSpec, make_spec
from podrt.spec.batch import HybridBatch
from podrt.spec.types import DType

_OWN = ["q_len", "kv_len", "row_begin", "kv_begin", "kv_end", "split", "num_splits"]
MIXED = [4096] + [1] * 64, [4096] + [2048] * 64


def layer_of(
    page_size: int | None = None,
    causal: bool = True,
    *,
    num_kv_heads: int = 8,
    group: int = 4,
    head_dim: int = 128,
    v_head_dim: int | None = None,
    dtype: DType = "bfloat16",
) -> AttentionSpec:
    heads = num_kv_heads * group, num_kv_heads
    return make_spec(*heads, head_dim, page_size, "NHD", dtype, causal, None, v_head_dim=v_head_dim)


def batch_of(q_lens: list[int], kv_lens: list[int]) -> HybridBatch:
    return HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )


def scheduled(
    q_lens: list[int],
    kv_lens: list[int] | None = None,
    policy: str | Policy = "auto",
    *,
    layer: AttentionSpec | None = None,
    arch: str = "sm_90a",
    num_sms: int = 132,
    decode_rows: int | None = None,
) -> Schedule:
    """Schedule a batch of 2048 keys a request, unless `kv_lens` says otherwise."""
    lens = [max(2048, q_len) for q_len in q_lens] if kv_lens is None else kv_lens
    return schedule(
        batch_of(q_lens, lens),
        layer or layer_of(),
        replace(H100, arch=get_arch(arch), num_sms=num_sms),
        parse_policy(policy) if isinstance(policy, str) else policy,
        decode_rows=decode_rows,
    )


def assert_plan_computes_attention(plan: Plan, batch: HybridBatch) -> None:
    """The plan is sound, and walking it gives attention: 8 query heads, 2 KV heads, 128 columns."""
    check_plan(plan, batch)
    rng = np.random.default_rng(5)
    q = rng.standard_normal((int(batch.q_lens.sum()), 8, 128))
    k, v = rng.standard_normal((2, len(batch.kv_lens), int(batch.kv_lens.max()), 2, 128))
    for got, expected in zip(
        execute_plan(plan, q, k, v), reference_attention(q, k, v, batch), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


def forms(result: Schedule) -> list[Form]:
    return [config.form for config in result.variants]


def work_of(found: Schedule, request: int) -> dict[str, Any]:
    """What computes a request: its items on each side, and the kernel that they are computed by."""
    work: dict[str, Any] = {}
    for side, items in (("prefill", found.plan.prefill), ("decode", found.plan.decode)):
        mine = items[items["request"] == request]
        if len(mine):
            own = sorted(tuple(int(item[name]) for name in _OWN) for item in mine)
            kernels = [each for each in found.variants if each.form in ("pod", side)]
            assert len(kernels) == 1
            work[side] = own, kernels[0]
    return work
