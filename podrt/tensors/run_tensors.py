"""The tensors of one run: viewed, checked against the plan, outputs allocated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch
from podrt.tensors.checks import (
    require_alignment,
    require_dtype,
    require_gpu,
    require_rank,
    require_same_device,
    require_unit_stride,
    require_writable,
)
from podrt.tensors.outputs import empty_like_caller, finish
from podrt.tensors.view import TensorView, view

_MAX_OFFSET = 2**31 - 1
_Q_LAYOUT = "[total_tokens, num_qo_heads, head_dim]"
_OUT_LAYOUT = "[total_tokens, num_qo_heads, v_head_dim]"


@dataclass(frozen=True)
class RunTensors:
    """Views of a run's tensors; caches with their axes in the order of ``"NHD"``.

    `out_tensor` and `lse_tensor` are the outputs themselves; `is_given` tells which of them are the
    caller's own and not allocated here. `sinks` is float32 ``[num_qo_heads]``.
    """

    q: TensorView
    k_cache: TensorView
    v_cache: TensorView
    out: TensorView
    lse: TensorView | None
    out_tensor: Any
    lse_tensor: Any
    is_given: tuple[bool, bool]
    sinks: TensorView | None = None

    def addresses(self) -> tuple[int, int, int, int, int, int, int]:
        """Return those of q, caches, out, lse and sinks (0 for none), and the rows of q."""
        lse, sinks = (0 if t is None else t.pointer for t in (self.lse, self.sinks))
        q, k, v, out = (t.pointer for t in (self.q, self.k_cache, self.v_cache, self.out))
        return q, k, v, out, lse, sinks, self.q.shape[0]

    def described(self) -> RunTensors:
        """Return how the tensors lie, without keeping any of them alive."""
        return RunTensors(
            replace(self.q, owner=None),
            replace(self.k_cache, owner=None),
            replace(self.v_cache, owner=None),
            replace(self.out, owner=None),
            None if self.lse is None else replace(self.lse, owner=None),
            None,
            None,
            self.is_given,
            None if self.sinks is None else replace(self.sinks, owner=None),
        )

    def results(self, *, return_lse: bool, stream: int = 0) -> Any:
        """Return out, or (out, lse), as the caller gets them once the work is on `stream`."""
        tensors = (self.out_tensor, self.lse_tensor)
        out, lse = (
            tensor if given else finish(tensor, self.q, stream)
            for tensor, given in zip(tensors, self.is_given, strict=True)
        )
        return (out, lse) if return_lse else out


def view_tensors(
    layer: AttentionSpec,
    batch: HybridBatch,
    stream: int,
    q: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    sinks: Any = None,
    out: Any,
    lse: Any,
    return_lse: bool,
    may_have_more_rows: bool = False,
) -> RunTensors:
    """View and check the inputs, then take or allocate the outputs.

    With `may_have_more_rows` q may have more rows than the batch has tokens.

    Raises
    ------
    ValueError, TypeError
        Names the argument, what was got and what is expected.
    """
    q_view = view(q, "q", stream)
    caches = [
        _nhd(view(cache, name, stream), layer, batch)
        for cache, name in ((k_cache, "k_cache"), (v_cache, "v_cache"))
    ]
    _check_q(q_view, layer, batch, may_have_more_rows)
    _check_cache(caches[0], layer, batch, "head_dim", layer.head_dim)
    _check_cache(caches[1], layer, batch, "v_head_dim", layer.value_dim)
    if caches[0].shape[:3] != caches[1].shape[:3]:
        raise ValueError(f"v_cache: got shape {caches[1].shape}, k_cache has {caches[0].shape}")
    require_same_device(q_view, *caches)
    sinks_view = None
    if sinks is not None:
        sinks_view = view(sinks, "sinks", stream)
        _check_sinks(sinks_view, q_view)
    is_given = (out is not None, lse is not None or not return_lse)
    out_shape = (*q_view.shape[:2], layer.value_dim)
    if out is None:
        out = empty_like_caller(q_view, out_shape, "same", stream)
    out_view = view(out, "out", stream)
    _check_out(out_view, q_view, out_shape)
    if lse is None and return_lse:
        lse = empty_like_caller(q_view, q_view.shape[:2], "float32", stream)
    lse_view = None
    if lse is not None:
        lse_view = view(lse, "lse", stream)
        _check_lse(lse_view, q_view)
    return RunTensors(
        q_view, caches[0], caches[1], out_view, lse_view, out, lse, is_given, sinks_view
    )


def require_kernel_can_read(tensors: RunTensors, device: int) -> None:
    """Check what the kernels need beyond right shapes: this GPU, alignment, 32-bit offsets."""
    require_gpu(tensors.q)
    if tensors.q.device != device:
        raise ValueError(
            f"q: lies on {tensors.q.place}, expected cuda:{device}, the device of this object; "
            "pass device= when making it"
        )
    for tensor in (tensors.q, tensors.k_cache, tensors.v_cache, tensors.out):
        require_unit_stride(tensor)
        require_alignment(tensor)
        _require_short_strides(tensor, heads_axis=-2)
    for by_head in (tensors.lse, tensors.sinks):
        if by_head is not None:
            _require_short_strides(by_head, heads_axis=-1)


def _check_q(
    q: TensorView, layer: AttentionSpec, batch: HybridBatch, may_have_more_rows: bool
) -> None:
    require_rank(q, 3, _Q_LAYOUT)
    tokens = batch.total_tokens
    if may_have_more_rows:
        tokens = max(tokens, q.shape[0])
    expected = (tokens, layer.num_qo_heads, layer.head_dim)
    if q.shape != expected:
        raise ValueError(f"q: got shape {q.shape}, expected {expected} {_Q_LAYOUT}")
    require_dtype(q, layer.dtype)


def _nhd(cache: TensorView, layer: AttentionSpec, batch: HybridBatch) -> TensorView:
    """Put tokens before heads."""
    tokens = "length" if batch.page_size is None else "page_size"
    first = "requests" if batch.page_size is None else "pages"
    axes = [tokens, "num_kv_heads"] if layer.kv_layout == "NHD" else ["num_kv_heads", tokens]
    require_rank(cache, 4, f"[{first}, {axes[0]}, {axes[1]}, head_dim]")
    if layer.kv_layout == "NHD":
        return cache
    (a, heads, length, d), (sa, s_heads, s_length, sd) = cache.shape, cache.strides
    return replace(cache, shape=(a, length, heads, d), strides=(sa, s_length, s_heads, sd))


def _check_cache(
    cache: TensorView, layer: AttentionSpec, batch: HybridBatch, dim: str, elements: int
) -> None:
    """Check keys or values, whose heads have so many elements, as the argument `dim` says."""
    batch.require_cache(cache.shape, cache.name)
    if cache.shape[2:] != (layer.num_kv_heads, elements):
        raise ValueError(
            f"{cache.name}: got {cache.shape[2]} KV heads of {cache.shape[3]}, expected "
            f"num_kv_heads={layer.num_kv_heads} of {dim}={elements}; "
            f"kv_layout is {layer.kv_layout!r}"
        )
    require_dtype(cache, layer.dtype)


def _check_sinks(sinks: TensorView, q: TensorView) -> None:
    require_rank(sinks, 1, "[num_qo_heads]")
    if sinks.shape != q.shape[1:2]:
        raise ValueError(f"sinks: got shape {sinks.shape}, expected {q.shape[1:2]}, one per head")
    require_dtype(sinks, "float32")
    require_same_device(q, sinks)


def _check_out(out: TensorView, q: TensorView, expected: tuple[int, ...]) -> None:
    require_rank(out, 3, _OUT_LAYOUT)
    if out.shape != expected:
        like = "as q" if expected == q.shape else _OUT_LAYOUT
        raise ValueError(f"out: got shape {out.shape}, expected {expected} {like}")
    require_dtype(out, q.dtype)
    require_same_device(q, out)
    require_writable(out)


def _check_lse(lse: TensorView, q: TensorView) -> None:
    require_rank(lse, 2, "[total_tokens, num_qo_heads]")
    if lse.shape != q.shape[:2]:
        raise ValueError(f"lse: got shape {lse.shape}, expected {q.shape[:2]}")
    require_dtype(lse, "float32")
    require_same_device(q, lse)
    require_writable(lse)


def _stepped_over(tensor: TensorView) -> list[int]:
    """Return the strides that matter: extents of 1 are never stepped over."""
    steps = zip(tensor.shape, tensor.strides, strict=True)
    return [stride for extent, stride in steps if extent > 1]


def _require_short_strides(tensor: TensorView, heads_axis: int) -> None:
    """Check what the kernels keep in 32 bits: every stride, and the offset of the last head."""
    if any(abs(stride) > _MAX_OFFSET for stride in _stepped_over(tensor)):
        raise ValueError(
            f"{tensor.name}: got strides {tensor.strides} (in elements), expected at most "
            f"{_MAX_OFFSET} each"
        )
    num_heads, stride = tensor.shape[heads_axis], tensor.strides[heads_axis]
    if (num_heads - 1) * abs(stride) > _MAX_OFFSET:
        raise ValueError(
            f"{tensor.name}: got {num_heads} heads {stride} elements apart, expected the last at "
            f"most {_MAX_OFFSET} elements from the first; pass a tensor whose heads lie closer "
            "together"
        )
