"""The `podrt.HybridAttention` of layers of one shape, with room for every step of the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from podrt.attention import HybridAttention
from podrt.integrations.vllm.group import LayerShape, dtype_of, limits_of
from podrt.integrations.vllm.options import is_deterministic, policy_of
from podrt.integrations.vllm.scratch import scratch_of
from podrt.policy.policies import Policy, parse_policy


def make_attention(shape: LayerShape, page_size: int, config: Any, device: Any) -> HybridAttention:
    """Return what runs layers of a shape, with nothing reserved yet."""
    return HybridAttention(
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_size,
        page_size=page_size,
        dtype=dtype_of(config),
        sm_scale=shape.scale,
        window_left=shape.window_left,
        logits_soft_cap=shape.logits_soft_cap,
        policy=_of_heads_apart(parse_policy(policy_of(config))),
        deterministic=is_deterministic(config),
        device=device.index,
    )


def _of_heads_apart(policy: Policy) -> Policy:
    """Return the policy for vLLM's caches, where keys of a head lie beside its values.

    There are no pairs of heads to plan for, unless somebody asks for such plans.
    """
    return replace(policy, head_pairs=False) if policy.head_pairs is None else policy


def reserved_attention(
    shape: LayerShape, page_size: int, config: Any, device: Any
) -> HybridAttention:
    """Return what runs layers of a shape, reserved for every step that the engine may make."""
    attention = make_attention(shape, page_size, config, device)
    limits = limits_of(config)
    attention.reserve(*limits, workspace=scratch_of(attention.workspace_bytes(*limits)))
    return attention


def describe_attention(attention: HybridAttention) -> dict[str, Any]:
    """Return how layers are served, for people."""
    variants = attention.reserved_variants
    return {
        "page_size": attention.layer.page_size,
        "dtype": attention.layer.dtype,
        "family": variants[0].family,
        "kernels": tuple(variant.name for variant in variants),
    }


def claim_scratch(shape: LayerShape, config: Any, device: Any) -> None:
    """Take the scratch memory of layers of a shape while the engine measures what it needs.

    It does not depend on the size of pages, which may not be known yet.
    """
    page_size = config.cache_config.block_size
    scratch_of(make_attention(shape, page_size, config, device).workspace_bytes(*limits_of(config)))
