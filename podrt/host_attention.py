"""`HostAttention`: `HybridAttention` without a GPU, exact and slow."""

from __future__ import annotations

from typing import Any

from podrt.reference import reference_attention
from podrt.spec.attention import AttentionSpec, make_spec
from podrt.spec.batch import HybridBatch
from podrt.tensors.host import host_array, to_numpy
from podrt.tensors.page_table import PageTable, make_batch, read_page_table, require_pages_exist
from podrt.tensors.run_tensors import view_tensors
from podrt.tensors.tree_mask import TreeMask, read_tree_mask

_Prepared = tuple[HybridBatch, PageTable | None, TreeMask | None]


class HostAttention:
    """Exact attention of planned batches on tensors in host memory, computed in NumPy.

    Takes the arguments of `HybridAttention` and checks them alike, so that a model can be tried on
    a machine without a GPU, and the kernels be compared with it on one that has.

    Parameters
    ----------
    num_qo_heads, num_kv_heads, head_dim, v_head_dim, page_size, kv_layout, dtype, causal, sm_scale,
    window_left, logits_soft_cap, tree_mask
        As `HybridAttention`.

    Raises
    ------
    UnsupportedConfigError, ValueError, TypeError
        As `HybridAttention`.
    """

    def __init__(
        self,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        v_head_dim: int | None = None,
        page_size: int | None = None,
        kv_layout: str = "NHD",
        dtype: Any = "bfloat16",
        causal: bool = True,
        sm_scale: float | None = None,
        window_left: int | None = None,
        logits_soft_cap: float | None = None,
        tree_mask: bool = False,
    ) -> None:
        self.layer: AttentionSpec = make_spec(
            num_qo_heads,
            num_kv_heads,
            head_dim,
            page_size,
            kv_layout,
            dtype,
            causal,
            sm_scale,
            window_left,
            logits_soft_cap,
            tree_mask,
            v_head_dim,
        )
        self._planned: _Prepared | None = None

    def plan(
        self,
        qo_indptr: Any,
        kv_lens: Any,
        *,
        block_table: Any = None,
        kv_indptr: Any = None,
        kv_indices: Any = None,
        tree_mask: Any = None,
    ) -> None:
        """Take a batch; all arguments have been read when this returns.

        Parameters
        ----------
        qo_indptr, kv_lens, block_table, kv_indptr, kv_indices, tree_mask
            As `HybridAttention.plan`; page numbers and tree mask in host memory.

        Raises
        ------
        ValueError, TypeError
            As `HybridAttention.plan`. The batch planned before stays in place.
        """
        page_size = self.layer.page_size
        table = read_page_table(page_size, block_table, kv_indptr, kv_indices)
        if table is not None:
            table.flat()  # page numbers on a GPU are refused
        lengths = host_array(qo_indptr, "qo_indptr"), host_array(kv_lens, "kv_lens")
        batch = make_batch(*lengths, table, page_size)
        self.adopt(self.prepare(batch, table, tree_mask=tree_mask))

    def prepare(
        self,
        batch: HybridBatch,
        table: PageTable | None,
        *,
        tree_mask: Any = None,
        stream: Any = None,
    ) -> _Prepared:
        """Take a batch that others have read; the one planned before stays in place until `adopt`.

        As `HybridAttention.prepare`, without a `stream`: nothing here runs on one.

        Raises
        ------
        ValueError, TypeError
            As `plan`, or there is a `stream`.
        """
        if stream is not None:
            raise ValueError(f"stream={stream!r}: this computes in host memory; leave it out")
        if batch.prefixes:
            raise ValueError("shared prefixes: the reference reads every request's keys itself")
        return batch, table, read_tree_mask(tree_mask, batch, self.layer.mask, None)

    def adopt(self, prepared: _Prepared) -> None:
        """Make a batch of `prepare` the one that runs compute."""
        self._planned = prepared

    def run(
        self,
        q: Any,
        k_cache: Any,
        v_cache: Any,
        *,
        out: Any = None,
        sinks: Any = None,
        lse: Any = None,
        return_lse: bool = False,
    ) -> Any:
        """Compute attention of the planned batch.

        Parameters
        ----------
        q, k_cache, v_cache, out, sinks, lse, return_lse
            As `HybridAttention.run`, in host memory.

        Returns
        -------
        out or (out, lse)
            In the framework of `q`.

        Raises
        ------
        ValueError, TypeError
            A tensor does not fit the plan or lies on a GPU, or a page number is not a page of the
            cache; nothing has been written.
        RuntimeError
            `plan` has not been called.
        """
        if self._planned is None:
            raise RuntimeError("no batch is planned: call plan() first")
        batch, table, tree = self._planned
        tensors = view_tensors(
            self.layer,
            batch,
            0,
            q,
            k_cache,
            v_cache,
            sinks=sinks,
            out=out,
            lse=lse,
            return_lse=return_lse,
        )
        if tensors.q.device is not None:
            raise ValueError(
                f"q: lies on {tensors.q.place}, expected host memory, where the reference computes"
            )
        if table is not None:
            require_pages_exist(table, batch, tensors.k_cache.shape[0], self.layer.mask)
        exact, exact_lse = reference_attention(
            to_numpy(tensors.q),
            to_numpy(tensors.k_cache),
            to_numpy(tensors.v_cache),
            batch,
            page_table=table.flat() if table else None,
            page_size=self.layer.page_size,
            causal=self.layer.mask.causal,
            sm_scale=self.layer.sm_scale,
            window_left=self.layer.mask.window_left,
            logits_soft_cap=self.layer.logits_soft_cap,
            sinks=None if tensors.sinks is None else to_numpy(tensors.sinks),
            tree_mask=tree.host_values if tree else None,
        )
        to_numpy(tensors.out)[...] = exact
        if tensors.lse is not None:
            to_numpy(tensors.lse)[...] = exact_lse
        return tensors.results(return_lse=return_lse)
