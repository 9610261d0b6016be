"""`SharedPrefixAttention`: keys that several requests share are read once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from podrt.attention import HybridAttention
from podrt.errors import UnsupportedConfigError
from podrt.policy.policies import Policy
from podrt.spec.shared_prefix import SharedPrefix


class SharedPrefixAttention:
    """`HybridAttention` of paged batches in which requests begin with the same pages.

    Where requests share a prefix (a system prompt, the branches of a search, parallel samples), its
    keys are attended once for the tokens of all of them, as packed rows of one tile after another,
    beside each request's own keys and all other requests, in the same launch; a second, short one
    merges both parts of their rows, in float32. Batches that share nothing take the one launch, as
    of a `HybridAttention`. Prefill chunks may share too: a prefix holds no new tokens.

    Parameters
    ----------
    num_qo_heads, num_kv_heads, head_dim, v_head_dim, page_size, kv_layout, dtype, sm_scale,
    logits_soft_cap, policy, device
        As `HybridAttention`, causal; pages are needed.

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
        page_size: int,
        kv_layout: str = "NHD",
        dtype: Any = "bfloat16",
        sm_scale: float | None = None,
        logits_soft_cap: float | None = None,
        policy: str | Policy = "auto",
        device: int | None = None,
    ) -> None:
        if page_size is None:
            raise UnsupportedConfigError(
                "page_size=None: requests share keys in pages; give the size of a page"
            )
        self._attention = HybridAttention(
            num_qo_heads,
            num_kv_heads,
            head_dim,
            v_head_dim=v_head_dim,
            page_size=page_size,
            kv_layout=kv_layout,
            dtype=dtype,
            sm_scale=sm_scale,
            logits_soft_cap=logits_soft_cap,
            policy=policy,
            device=device,
        )

    @property
    def shared_prefixes(self) -> tuple[SharedPrefix, ...]:
        """The prefixes of the planned batch: requests ``begin`` to ``end - 1``, and keys."""
        return self._attention.shared_prefixes

    def plan(
        self,
        qo_indptr: Any,
        kv_lens: Any,
        *,
        block_table: Any = None,
        kv_indptr: Any = None,
        kv_indices: Any = None,
        shared_prefixes: Iterable[Sequence[int]] | None = None,
        stream: Any = None,
    ) -> None:
        """Prepare for a batch. Requests that share a prefix must follow one another.

        Parameters
        ----------
        qo_indptr, kv_lens, block_table, kv_indptr, kv_indices, stream
            As `HybridAttention.plan`; the page table in host memory, or `shared_prefixes` given.
        shared_prefixes : iterable of (begin, end, num_keys), optional
            Requests ``begin`` to ``end - 1`` have their first `num_keys` keys, whole pages without
            new tokens, in the same pages: those of the first of them are read. In the order of the
            batch. If None, requests with equal first page numbers are found, as far as that saves
            more than the second launch takes.

        Raises
        ------
        ValueError, TypeError
            As `HybridAttention.plan`; a prefix that does not fit the batch; or none given for a
            page table on a GPU. The batch planned before stays in place.
        DeviceError, CompileError
            There is no usable GPU, or a kernel did not compile.
        """
        asked = "find" if shared_prefixes is None else shared_prefixes
        self._attention.plan(
            qo_indptr,
            kv_lens,
            block_table=block_table,
            kv_indptr=kv_indptr,
            kv_indices=kv_indices,
            shared_prefixes=asked,
            stream=stream,
        )

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
        stream: Any = None,
    ) -> Any:
        """Launch attention of the planned batch; returns without waiting for the GPU.

        Parameters
        ----------
        q, k_cache, v_cache, out, sinks, lse, return_lse, stream
            As `HybridAttention.run`.

        Returns
        -------
        out or (out, lse)
            In the framework of `q`.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As `HybridAttention.run`.
        """
        return self._attention.run(
            q,
            k_cache,
            v_cache,
            out=out,
            sinks=sinks,
            lse=lse,
            return_lse=return_lse,
            stream=stream,
        )
