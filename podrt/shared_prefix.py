"""`SharedPrefixAttention`: keys that several requests share are read once for all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from podrt.attention import HybridAttention
from podrt.errors import UnsupportedConfigError
from podrt.policy.policies import Policy
from podrt.spec.prefixes import SharedPrefix, checked_prefixes, find_prefixes, in_parts
from podrt.state_merge import merge_states

#: Reading so many keys again takes as long as the further launches, for the usual layer on an H100.
_LEAST_SAVED_KEYS = 8192


class SharedPrefixAttention:
    """`HybridAttention` of paged batches in which requests begin with the same pages.

    Where requests share a prefix (a system prompt, the branches of a search, parallel samples), its
    keys are attended once for the tokens of all of them, each request's own keys beside other
    requests' as ever, and both are merged: three launches in place of one, which read shared keys
    once. Batches that share nothing take the one launch. Prefill chunks may share too: a prefix
    holds no new tokens.

    Both parts are rounded to `dtype` before they are merged.

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

        def attention(*, causal: bool) -> HybridAttention:
            return HybridAttention(
                num_qo_heads,
                num_kv_heads,
                head_dim,
                v_head_dim=v_head_dim,
                page_size=page_size,
                kv_layout=kv_layout,
                dtype=dtype,
                causal=causal,
                sm_scale=sm_scale,
                logits_soft_cap=logits_soft_cap,
                policy=policy,
                device=device,
            )

        self._own, self._shared = attention(causal=True), attention(causal=False)
        self._lock = threading.RLock()
        self._prefixes: tuple[SharedPrefix, ...] = ()

    @property
    def shared_prefixes(self) -> tuple[SharedPrefix, ...]:
        """The prefixes of the planned batch: requests ``begin`` to ``end - 1``, and keys."""
        return self._prefixes

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
            more than the further launches take.

        Raises
        ------
        ValueError, TypeError
            As `HybridAttention.plan`; a prefix that does not fit the batch; or none given for a
            page table on a GPU. The batch planned before stays in place.
        DeviceError, CompileError
            There is no usable GPU, or a kernel did not compile.
        """
        with self._lock:
            batch, table = self._own.read_batch(
                qo_indptr,
                kv_lens,
                block_table=block_table,
                kv_indptr=kv_indptr,
                kv_indices=kv_indices,
            )
            assert table is not None  # pages are needed
            if shared_prefixes is not None:
                prefixes = checked_prefixes(batch, shared_prefixes)
            elif table.host_values is None:
                raise ValueError(
                    f"shared_prefixes=None: page numbers are compared in host memory, but "
                    f"{table.tensor.name} lies on {table.tensor.place}; say which requests share"
                )
            else:
                prefixes = find_prefixes(batch, table.flat(), least_saved_keys=_LEAST_SAVED_KEYS)
            parts = in_parts(batch, prefixes)
            batches = [(self._own, parts.own)]
            if prefixes:
                batches.append((self._shared, parts.shared))
            prepared = [(each, each.prepare(part, table, stream=stream)) for each, part in batches]
            for each, plan in prepared:
                each.adopt(plan)
            self._prefixes = tuple(prefixes)

    def run(
        self,
        q: Any,
        k_cache: Any,
        v_cache: Any,
        *,
        out: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        stream: Any = None,
    ) -> Any:
        """Launch attention of the planned batch; returns without waiting for the GPU.

        Parameters
        ----------
        q, k_cache, v_cache, out, lse, return_lse, stream
            As `HybridAttention.run`. Where a prefix is shared, results of both parts are allocated
            in the framework of `q`, so that under capture PyTorch alone can be captured.

        Returns
        -------
        out or (out, lse)
            In the framework of `q`.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As `HybridAttention.run`.
        """
        with self._lock:
            tensors = q, k_cache, v_cache
            if not self._prefixes:
                return self._own.run(
                    *tensors, out=out, lse=lse, return_lse=return_lse, stream=stream
                )
            shared = self._shared.run(*tensors, return_lse=True, stream=stream)
            own = self._own.run(*tensors, out=out, lse=lse, return_lse=True, stream=stream)
            outs, lses = zip(own, shared, strict=True)
            merged = merge_states(list(outs), list(lses), out=own[0], lse=own[1], stream=stream)
            return merged if return_lse else merged[0]
