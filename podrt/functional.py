"""`hybrid_attention`: plan and run in one call, on a GPU or exactly on the host."""

from __future__ import annotations

from typing import Any, get_args

from podrt.attention import HybridAttention
from podrt.errors import UnsupportedConfigError
from podrt.host_attention import HostAttention
from podrt.policy.policies import Policy, policy_of
from podrt.spec.types import DType
from podrt.tensors.checks import require_dtype, require_rank
from podrt.tensors.streams import resolve_stream
from podrt.tensors.view import view

_BACKENDS = ("auto", "cuda", "reference")


def hybrid_attention(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    qo_indptr: Any,
    kv_lens: Any,
    *,
    block_table: Any = None,
    kv_indptr: Any = None,
    kv_indices: Any = None,
    kv_layout: str = "NHD",
    causal: bool = True,
    sm_scale: float | None = None,
    window_left: int | None = None,
    logits_soft_cap: float | None = None,
    tree_mask: Any = None,
    policy: str | Policy = "auto",
    deterministic: bool = False,
    out: Any = None,
    sinks: Any = None,
    lse: Any = None,
    return_lse: bool = False,
    stream: Any = None,
    backend: str = "auto",
) -> Any:
    """Attention of one hybrid batch in one call.

    Heads, head_dim, v_head_dim, dtype and page size are read off the tensors. For many layers of
    one batch, `HybridAttention` plans once.

    Parameters
    ----------
    q, k_cache, v_cache, out, sinks, lse, return_lse, stream
        As `HybridAttention.run`. The cache is paged if a page table is given; `stream` is for work
        on a GPU.
    qo_indptr, kv_lens, block_table, kv_indptr, kv_indices, tree_mask
        As `HybridAttention.plan`.
    kv_layout, causal, sm_scale, window_left, logits_soft_cap, policy, deterministic
        As `HybridAttention`.
    backend : {"auto", "cuda", "reference"}
        ``"cuda"`` runs the fused kernel, ``"reference"`` exact NumPy on tensors in host memory
        (slow), ``"auto"`` whichever of them serves the memory that `q` lies in.

    Returns
    -------
    out or (out, lse)
        In the framework of `q`.

    Raises
    ------
    ValueError, TypeError, UnsupportedConfigError, DeviceError
        As `HybridAttention` and its methods.
    """
    if backend not in _BACKENDS:
        raise UnsupportedConfigError(f"backend={backend!r}: allowed are {_BACKENDS}")
    q_view, k_view, v_view = view(q, "q"), view(k_cache, "k_cache"), view(v_cache, "v_cache")
    require_rank(q_view, 3, "[total_tokens, num_qo_heads, head_dim]")
    require_dtype(q_view, *get_args(DType))
    require_rank(k_view, 4, "of a cache")
    require_rank(v_view, 4, "of a cache")
    tokens, heads = (1, 2) if kv_layout == "NHD" else (2, 1)
    is_paged = any(table is not None for table in (block_table, kv_indptr, kv_indices))
    layer_arguments: dict[str, Any] = {
        "num_qo_heads": q_view.shape[1],
        "num_kv_heads": k_view.shape[heads],
        "head_dim": q_view.shape[2],
        "v_head_dim": v_view.shape[3],
        "page_size": k_view.shape[tokens] if is_paged else None,
        "kv_layout": kv_layout,
        "dtype": q_view.dtype,
        "causal": causal,
        "sm_scale": sm_scale,
        "window_left": window_left,
        "logits_soft_cap": logits_soft_cap,
        "tree_mask": tree_mask is not None,
    }
    tables = {"block_table": block_table, "kv_indptr": kv_indptr, "kv_indices": kv_indices}
    tables["tree_mask"] = tree_mask
    others = {"out": out, "sinks": sinks, "lse": lse, "return_lse": return_lse}
    on_host = q_view.device is None
    if backend == "reference" or (backend == "auto" and on_host):
        policy_of(policy, deterministic)
        if stream is not None:
            raise ValueError(
                f"stream={stream!r}: orders work on a GPU, but this call computes on the host; "
                "leave it out"
            )
        reference = HostAttention(**layer_arguments)
        reference.plan(qo_indptr, kv_lens, **tables)
        return reference.run(q, k_cache, v_cache, **others)
    if on_host:
        raise ValueError(
            "q: lies in host memory, expected a tensor on a CUDA GPU; move it there, "
            'or pass backend="reference"'
        )
    attention = HybridAttention(
        **layer_arguments, policy=policy, deterministic=deterministic, device=q_view.device
    )
    # On the stream of the run, so that a capture is refused: its graph would outlive `attention`.
    handle = resolve_stream(stream, like=q)
    attention.plan(qo_indptr, kv_lens, **tables, stream=handle)
    return attention.run(q, k_cache, v_cache, **others, stream=handle)
