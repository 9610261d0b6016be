"""The tensors of a write to a cache: viewed and checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, get_args

from podrt.errors import UnsupportedConfigError
from podrt.spec.attention import KvLayout
from podrt.spec.types import HEAD_DIMS, HEAD_DIMS_TEXT, DType
from podrt.tensors.checks import (
    require_alignment,
    require_dtype,
    require_rank,
    require_same_device,
    require_unit_stride,
    require_writable,
)
from podrt.tensors.view import TensorView, view


class WriteTensors(NamedTuple):
    """Views of a write's tensors; caches with their axes in the order of ``"NHD"``."""

    k: TensorView
    v: TensorView
    k_cache: TensorView
    v_cache: TensorView
    slots: TensorView

    @property
    def num_tokens(self) -> int:
        """Tokens to be written: rows of k and v beyond them are padding."""
        return self.slots.shape[0]


def view_write_tensors(
    k: Any, v: Any, k_cache: Any, v_cache: Any, slot_mapping: Any, kv_layout: str, stream: int = 0
) -> WriteTensors:
    """View and check what `podrt.write_cache` is given.

    Raises
    ------
    ValueError, TypeError, UnsupportedConfigError
        Names the argument, what was got and what is expected.
    """
    if kv_layout not in get_args(KvLayout):
        raise UnsupportedConfigError(f"kv_layout={kv_layout!r}: allowed are {get_args(KvLayout)}")
    tensors = WriteTensors(
        view(k, "k", stream),
        view(v, "v", stream),
        _nhd(view(k_cache, "k_cache", stream), kv_layout),
        _nhd(view(v_cache, "v_cache", stream), kv_layout),
        view(slot_mapping, "slot_mapping", stream),
    )
    _check_slots(tensors.slots)
    for cache in (tensors.k_cache, tensors.v_cache):
        _check_cache(cache, tensors.k_cache)
    for tensor, cache in ((tensors.k, tensors.k_cache), (tensors.v, tensors.v_cache)):
        _check_new(tensor, cache, tensors.slots)
    require_same_device(*tensors)
    return tensors


def _nhd(cache: TensorView, kv_layout: str) -> TensorView:
    """Put tokens before heads."""
    axes = "page_size, num_kv_heads" if kv_layout == "NHD" else "num_kv_heads, page_size"
    require_rank(cache, 4, f"[pages, {axes}, head_dim]")
    if kv_layout == "NHD":
        return cache
    (a, heads, length, d), (sa, s_heads, s_length, sd) = cache.shape, cache.strides
    return replace(cache, shape=(a, length, heads, d), strides=(sa, s_length, s_heads, sd))


def _check_slots(slots: TensorView) -> None:
    require_rank(slots, 1, "[tokens]")
    require_dtype(slots, "int64")
    require_unit_stride(slots)


def _check_cache(cache: TensorView, first: TensorView) -> None:
    require_dtype(cache, *(get_args(DType) if cache is first else (first.dtype,)))
    if cache.shape[:3] != first.shape[:3]:
        raise ValueError(f"{cache.name}: got shape {cache.shape}, k_cache has {first.shape}")
    if cache.shape[3] not in HEAD_DIMS:
        raise UnsupportedConfigError(
            f"{cache.name}: got head_dim={cache.shape[3]}, allowed are {HEAD_DIMS_TEXT}"
        )
    if cache.shape[1] == 0:
        raise ValueError(f"{cache.name}: got pages of no tokens, shape {cache.shape}")
    require_unit_stride(cache)
    require_alignment(cache)
    require_writable(cache)


def _check_new(tensor: TensorView, cache: TensorView, slots: TensorView) -> None:
    require_rank(tensor, 3, "[tokens, num_kv_heads, head_dim]")
    if tensor.shape[1:] != cache.shape[2:]:
        raise ValueError(
            f"{tensor.name}: got {tensor.shape[1]} KV heads of {tensor.shape[2]}, expected "
            f"{cache.shape[2]} of {cache.shape[3]} as in {cache.name}"
        )
    if tensor.shape[0] < slots.shape[0]:
        raise ValueError(
            f"{tensor.name}: has {tensor.shape[0]} tokens, slot_mapping tells where "
            f"{slots.shape[0]} go; expected at least as many tokens as slots"
        )
    require_dtype(tensor, cache.dtype)
    require_unit_stride(tensor)
    require_alignment(tensor)
