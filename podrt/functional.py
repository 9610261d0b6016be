"""Attention of a hybrid batch in host memory: `podrt.reference` behind the front door's checks."""

from __future__ import annotations

from typing import Any

from podrt.reference import reference_attention
from podrt.spec.attention import Layer
from podrt.tensors.host import host_array, to_numpy
from podrt.tensors.page_table import make_batch, read_page_table, require_pages_exist
from podrt.tensors.run_tensors import view_tensors


def attend_on_host(
    layer: Layer,
    q: Any,
    k_cache: Any,
    v_cache: Any,
    qo_indptr: Any,
    kv_lens: Any,
    tables: dict[str, Any],
    outputs: dict[str, Any],
) -> Any:
    """Compute exact attention of tensors in host memory, with the same checks as on a GPU.

    Parameters
    ----------
    layer : Layer
        What is fixed for the layer.
    q, k_cache, v_cache, qo_indptr, kv_lens
        As `podrt.hybrid_attention`.
    tables : dict
        Its arguments block_table, kv_indptr and kv_indices.
    outputs : dict
        Its arguments out, lse and return_lse.

    Returns
    -------
    out or (out, lse)
        In the framework of `q`.

    Raises
    ------
    ValueError, TypeError
        As `podrt.hybrid_attention`.
    """
    table = read_page_table(layer.page_size, **tables)
    batch = make_batch(
        host_array(qo_indptr, "qo_indptr"), host_array(kv_lens, "kv_lens"), table, layer.page_size
    )
    tensors = view_tensors(layer, batch, 0, q, k_cache, v_cache, **outputs)
    if tensors.q.device is not None:
        raise ValueError(
            f'q: lies on {tensors.q.place}; backend="reference" takes tensors in host memory'
        )
    if table is not None:
        require_pages_exist(table, batch, tensors.k_cache.shape[0])
    out, lse = reference_attention(
        to_numpy(tensors.q),
        to_numpy(tensors.k_cache),
        to_numpy(tensors.v_cache),
        batch,
        page_table=table.flat() if table else None,
        page_size=layer.page_size,
        causal=layer.causal,
        sm_scale=layer.sm_scale,
    )
    to_numpy(tensors.out)[...] = out
    if tensors.lse is not None:
        to_numpy(tensors.lse)[...] = lse
    return tensors.results(return_lse=outputs["return_lse"])
