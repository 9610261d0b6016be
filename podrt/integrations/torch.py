"""PyTorch: attention that `torch.compile` and `torch.export` can trace.

Importing this module registers operations with PyTorch, under ``torch.ops.podrt``. They are for
graphs: what runs eagerly calls podrt as it is, without PyTorch's dispatcher in between.

A traced call cannot hold a Python object, so operations know a planned attention by its handle, a
number. The table of handles keeps nothing alive.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch

import podrt
from podrt.attention import HybridAttention
from podrt.host_attention import HostAttention

Attention = HybridAttention | HostAttention

_by_handle: weakref.WeakValueDictionary[int, Attention] = weakref.WeakValueDictionary()
_handles: weakref.WeakKeyDictionary[Attention, int] = weakref.WeakKeyDictionary()
#: torch.compile makes a variable of a number that changes, but for 0 and 1.
_next_handle = itertools.count(2)


class TorchAttention:
    """A planned attention as layers of a PyTorch model call it, eagerly and under `torch.compile`.

    The batch is planned outside of what is compiled, with ``attention.plan``; one compiled graph
    serves all batches and all attentions. In a graph a call is an operation of ``torch.ops.podrt``,
    eagerly it is ``attention.run``, on the current stream in both cases.

    Parameters
    ----------
    attention : HybridAttention or HostAttention
        Kept alive by this object, but not by compiled graphs.

    Attributes
    ----------
    attention : HybridAttention or HostAttention
        What was given.
    handle : int
        By which ``torch.ops.podrt`` knows it in this process.

    Raises
    ------
    TypeError
        `attention` is neither.
    """

    def __init__(self, attention: Attention) -> None:
        if not isinstance(attention, Attention):
            raise TypeError(
                f"attention: got {type(attention).__name__}, expected podrt.HybridAttention, or "
                "podrt.HostAttention for tensors in host memory"
            )
        self.attention = attention
        self.handle = _handle_of(attention)

    def __call__(
        self,
        q: Any,
        k_cache: Any,
        v_cache: Any,
        *,
        out: Any = None,
        sinks: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        decodes_only: bool = False,
    ) -> Any:
        """Compute attention of the planned batch.

        Parameters
        ----------
        q, k_cache, v_cache, out, sinks, lse, return_lse, decodes_only
            As `HybridAttention.run`, torch tensors. `HostAttention` knows no `decodes_only`.

        Returns
        -------
        out or (out, lse)
            As `HybridAttention.run`.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As `HybridAttention.run`; from a compiled graph when it runs.
        RuntimeError
            A tensor requires grad: there is no backward pass. Or, in a compiled graph that is
            captured into a CUDA graph: `HybridAttention.reserve` has not been called.
        """
        if not torch.compiler.is_compiling():
            _refuse_training(q, k_cache, v_cache, sinks)
            return self.attention.run(
                q,
                k_cache,
                v_cache,
                out=out,
                sinks=sinks,
                lse=lse,
                return_lse=return_lse,
                **_form(decodes_only),
            )
        # Memory that the graph owns: its compiler can plan it, and knows how it is aligned.
        if out is None:
            out = _empty_out(q, v_cache)
        if lse is None and return_lse:
            lse = _empty_lse(q)
        torch.ops.podrt.run_out(
            q, k_cache, v_cache, self.handle, out, lse, decodes_only=decodes_only, sinks=sinks
        )
        return (out, lse) if return_lse else out


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
    policy: str = "auto",
    return_lse: bool = False,
    sinks: Any = None,
    window_left: int | None = None,
    logits_soft_cap: float | None = None,
) -> Any:
    """`podrt.hybrid_attention`, which `torch.compile` can trace: plan and run in one call.

    It plans at every call, for which lengths on a GPU are waited for, and is never part of a CUDA
    graph. Layers of a model are better served by `TorchAttention`.

    Parameters
    ----------
    q, k_cache, v_cache, qo_indptr, kv_lens, block_table, kv_indptr, kv_indices, sinks
        As `podrt.hybrid_attention`, all of them torch tensors.
    kv_layout, causal, sm_scale, policy, return_lse, window_left, logits_soft_cap
        As `podrt.hybrid_attention`; the policy by its name.

    Returns
    -------
    out or (out, lse)

    Raises
    ------
    ValueError, TypeError, UnsupportedConfigError, DeviceError
        As `podrt.hybrid_attention`; from a compiled graph when it runs.
    RuntimeError
        A tensor requires grad: there is no backward pass.
    """
    arguments = (q, k_cache, v_cache, qo_indptr, kv_lens, block_table, kv_indptr, kv_indices)
    options = (kv_layout, causal, sm_scale, policy, sinks, window_left, logits_soft_cap)
    if not torch.compiler.is_compiling():
        return _attend(*arguments, *options, return_lse=return_lse)
    both = torch.ops.podrt.hybrid_attention(*arguments, *options)
    return both if return_lse else both[0]


def _handle_of(attention: Attention) -> int:
    """Return the attention's handle, the same at every call."""
    handle = _handles.get(attention)
    if handle is None:
        handle = _handles[attention] = next(_next_handle)
        _by_handle[handle] = attention
    return handle


def _attention_at(handle: int, q: Any) -> Attention:
    attention = _by_handle.get(handle)
    if attention is None:
        raise RuntimeError(
            f"handle={handle}: the attention that was compiled in is gone, or of another process; "
            "keep its TorchAttention as long as the compiled graph"
        )
    # The graph's replays would compute the batch of now, whatever is planned for them.
    if q.is_cuda and torch.cuda.is_current_stream_capturing() and not _is_reserved(attention):
        raise RuntimeError(
            "run: a compiled graph is being captured into a CUDA graph, which would hold the batch "
            "that is planned now; call attention.reserve() before, or compile without CUDA graphs "
            '(mode="reduce-overhead" and "max-autotune" make them)'
        )
    return attention


def _is_reserved(attention: Attention) -> bool:
    return isinstance(attention, HybridAttention) and attention.is_reserved


def _refuse_training(q: Any, k: Any, v: Any, sinks: Any = None) -> None:
    if not torch.is_grad_enabled():
        return
    wants_gradient = q.requires_grad or k.requires_grad or v.requires_grad
    if wants_gradient or (sinks is not None and sinks.requires_grad):
        raise RuntimeError(
            "podrt has no backward pass, and a tensor given to it requires grad; call the model "
            "under torch.inference_mode() or torch.no_grad(), or detach the tensor"
        )


def _form(decodes_only: bool) -> dict[str, Any]:
    """Return what `HybridAttention.run` knows and `HostAttention.run`, without graphs, does not."""
    return {"decodes_only": True} if decodes_only else {}


def _empty_out(q: Any, v: Any) -> Any:
    return q.new_empty((*q.shape[:2], v.shape[-1]))


def _empty_lse(q: Any) -> Any:
    return q.new_empty(q.shape[:2], dtype=torch.float32)


# The operations. Each runs on real tensors, and has a fake that says what traced ones give.


def _run(q: Any, k: Any, v: Any, handle: int, decodes_only: bool = False, sinks: Any = None) -> Any:
    out = _empty_out(q, v)
    _run_out(q, k, v, handle, out, None, decodes_only, sinks)
    return out


def _run_out(
    q: Any,
    k: Any,
    v: Any,
    handle: int,
    out: Any,
    lse: Any = None,
    decodes_only: bool = False,
    sinks: Any = None,
) -> None:
    _refuse_training(q, k, v, sinks)
    _attention_at(handle, q).run(q, k, v, out=out, sinks=sinks, lse=lse, **_form(decodes_only))


def _fake_run(
    q: Any, k: Any, v: Any, handle: int, decodes_only: bool = False, sinks: Any = None
) -> Any:
    _refuse_training(q, k, v, sinks)
    return _empty_out(q, v)


def _fake_run_out(
    q: Any,
    k: Any,
    v: Any,
    handle: int,
    out: Any,
    lse: Any = None,
    decodes_only: bool = False,
    sinks: Any = None,
) -> None:
    _refuse_training(q, k, v, sinks)


def _attend(
    q: Any,
    k: Any,
    v: Any,
    qo_indptr: Any,
    kv_lens: Any,
    block_table: Any,
    kv_indptr: Any,
    kv_indices: Any,
    kv_layout: str,
    causal: bool,
    sm_scale: float | None,
    policy: str,
    sinks: Any = None,
    window_left: int | None = None,
    logits_soft_cap: float | None = None,
    return_lse: bool = True,
) -> Any:
    _refuse_training(q, k, v, sinks)
    return podrt.hybrid_attention(
        q,
        k,
        v,
        qo_indptr,
        kv_lens,
        block_table=block_table,
        kv_indptr=kv_indptr,
        kv_indices=kv_indices,
        kv_layout=kv_layout,
        causal=causal,
        sm_scale=sm_scale,
        window_left=window_left,
        logits_soft_cap=logits_soft_cap,
        policy=policy,
        sinks=sinks,
        return_lse=return_lse,
    )


def _fake_attend(q: Any, k: Any, v: Any, *_: Any) -> tuple[Any, Any]:
    _refuse_training(q, k, v)
    return _empty_out(q, v), _empty_lse(q)


_PLANNED = "Tensor q, Tensor k_cache, Tensor v_cache, SymInt handle"
_WHOLE = (
    "Tensor q, Tensor k_cache, Tensor v_cache, Tensor qo_indptr, Tensor kv_lens, "
    "Tensor? block_table, Tensor? kv_indptr, Tensor? kv_indices, "
    "str kv_layout, bool causal, float? sm_scale, str policy, "
    "Tensor? sinks=None, int? window_left=None, float? logits_soft_cap=None"
)
_OUTPUTS = "Tensor(a!) out, Tensor(b!)? lse=None"
_OPTIONS = "bool decodes_only=False, Tensor? sinks=None"
# Kernels read what they were traced with: an inner stride of one, and caches where they lie.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_PLANNING_TAGS = (*_TAGS, torch.Tag.cudagraph_unsafe)
_OPERATIONS = (
    (f"run({_PLANNED}, *, {_OPTIONS}) -> Tensor", _TAGS, _run, _fake_run),
    (f"run_out({_PLANNED}, {_OUTPUTS}, *, {_OPTIONS}) -> ()", _TAGS, _run_out, _fake_run_out),
    (
        f"hybrid_attention({_WHOLE}) -> (Tensor out, Tensor lse)",
        _PLANNING_TAGS,
        _attend,
        _fake_attend,
    ),
)

#: Registrations last as long as this.
_LIBRARY = torch.library.Library("podrt", "DEF")


def _register() -> None:
    for schema, tags, run, fake in _OPERATIONS:
        name = schema.partition("(")[0]
        _LIBRARY.define(schema, tags=tags)
        for place in ("CPU", "CUDA"):
            _LIBRARY.impl(name, run, place)
        torch.library.register_fake(f"podrt::{name}", fake, lib=_LIBRARY)


_register()
