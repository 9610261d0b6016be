"""A `HybridAttention` that is planned for a batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from podrt.attention import HybridAttention
from podrt.gpu.device import load_cupy
from podrt.policy.policies import Policy
from podrt.spec.attention import AttentionSpec
from podrt.tensors.shared_prefixes import SharedPrefixes


def planned_attention(
    spec: AttentionSpec,
    policy: str | Policy,
    qo_indptr: npt.NDArray[np.int32],
    kv_lens: npt.NDArray[np.int32],
    block_table: npt.NDArray[np.int32] | None,
    *,
    tree_mask: npt.NDArray[np.uint64] | None = None,
    shared_prefixes: SharedPrefixes = None,
    num_sms: int | None = None,
) -> HybridAttention:
    """Return attention of a layer, planned on the current GPU.

    Parameters
    ----------
    spec : AttentionSpec
        The attention layer.
    policy : str or Policy
        As of `HybridAttention`.
    qo_indptr, kv_lens : int32 arrays
        Lengths of the batch.
    block_table : int32 array [requests, max_pages] or None
        Pages of a paged layer; copied to the GPU, but for prefixes to be looked for.
    tree_mask : uint64 array [total tokens], optional
        Words of a layer with trees.
    shared_prefixes : optional
        As of `HybridAttention.plan`.
    num_sms : int, optional
        SMs that its runs have; all of the GPU's if None.
    """
    attention = HybridAttention(
        spec.num_qo_heads,
        spec.num_kv_heads,
        spec.head_dim,
        v_head_dim=spec.v_head_dim,
        page_size=spec.page_size,
        dtype=spec.dtype,
        causal=spec.mask.causal,
        sm_scale=spec.sm_scale,
        window_left=spec.mask.window_left,
        logits_soft_cap=spec.logits_soft_cap,
        tree_mask=spec.mask.tree,
        policy=policy,
        num_sms=num_sms,
    )
    table = block_table
    if table is not None and shared_prefixes != "find":
        table = load_cupy().asarray(table)
    more = {"tree_mask": tree_mask, "shared_prefixes": shared_prefixes}
    attention.plan(qo_indptr, kv_lens, block_table=table, **more)
    return attention
