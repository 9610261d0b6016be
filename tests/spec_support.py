"""Layers for tests that do not care about most of one."""

from __future__ import annotations

from dataclasses import replace

from podrt.spec.attention import AttentionSpec, make_spec
from podrt.spec.mask import Mask

_SPEC = make_spec(8, 8, 128, None, "NHD", "bfloat16", True, None)


def spec_of(
    num_kv_heads: int = 1,
    group: int = 1,
    causal: bool = True,
    *,
    window_left: int | None = None,
    logits_soft_cap: float | None = None,
    page_size: int | None = None,
    tree_mask: bool = False,
) -> AttentionSpec:
    """Return a layer of so many heads."""
    return replace(
        _SPEC,
        num_qo_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        mask=Mask(causal, window_left, tree_mask),
        logits_soft_cap=logits_soft_cap,
        page_size=page_size,
    )
