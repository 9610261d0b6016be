"""`AttentionSpec`: what is fixed for an attention layer, checked once."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal, cast, get_args

import numpy as np

from podrt.errors import UnsupportedConfigError
from podrt.spec.mask import Mask
from podrt.spec.types import HEAD_DIMS, HEAD_DIMS_TEXT, DType, dtype_name

KvLayout = Literal["NHD", "HND"]

_LEAST_SCALE, _LARGEST_SCALE = 1e-38, 1e8
_LEAST_CAP = 1e-20


@dataclass(frozen=True)
class KernelSpec:
    """What a kernel is compiled for; the variants of every family answer to it.

    Attributes
    ----------
    head_dim : int
        Elements of a head of q and the keys.
    dtype : {"bfloat16", "float16"}
        Element type of q, the caches and the output.
    causal : bool
        Tokens see no key behind their own. How many they see before it is an argument of every
        kernel (`Mask.window_left`).
    page_size : int or None
        Tokens of a page; None is a contiguous cache.
    soft_cap : bool
        Scores are capped; by what is an argument (`AttentionSpec.logits_soft_cap`).
    tree_mask : bool
        Decodes have trees (`Mask.tree`); which, plans say.
    v_head_dim : int or None
        Elements of a head of the values and of the output; None where as many as of the keys.
    """

    head_dim: int
    dtype: DType
    causal: bool
    page_size: int | None
    soft_cap: bool
    tree_mask: bool = False
    v_head_dim: int | None = None

    @property
    def value_dim(self) -> int:
        """Elements of a head of the values and of the output."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def heads_tag(self) -> str:
        """The word for the size of heads in names."""
        return heads_tag(self.head_dim, self.v_head_dim)


@dataclass(frozen=True)
class AttentionSpec:
    """An attention layer: what plans, variants, tensors and the reference must agree on.

    Attributes
    ----------
    num_qo_heads, num_kv_heads, head_dim : int
        Heads, and the size of each of q and the keys.
    dtype : {"bfloat16", "float16"}
        Element type.
    mask : Mask
        Which keys a token sees.
    sm_scale : float
        Factor on the scores before the softmax.
    page_size : int or None
        Tokens of a page; None is a contiguous cache.
    kv_layout : {"NHD", "HND"}
        Order of tokens and heads in the caches.
    logits_soft_cap : float or None
        Scaled scores s become ``cap * tanh(s / cap)`` before the mask; None leaves them.
    v_head_dim : int or None
        As of `KernelSpec`; `value_dim` is a number in any case.
    """

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    mask: Mask
    sm_scale: float
    page_size: int | None
    kv_layout: KvLayout
    logits_soft_cap: float | None = None
    v_head_dim: int | None = None

    @property
    def value_dim(self) -> int:
        """Elements of a head of the values and of the output."""
        return self.kernel.value_dim

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_qo_heads // self.num_kv_heads

    @cached_property
    def kernel(self) -> KernelSpec:
        """What its kernels are compiled for."""
        soft_cap = self.logits_soft_cap is not None
        return KernelSpec(
            self.head_dim,
            self.dtype,
            self.mask.causal,
            self.page_size,
            soft_cap,
            self.mask.tree,
            self.v_head_dim,
        )


def heads_tag(head_dim: int, v_head_dim: int | None) -> str:
    """Return the word for the size of heads in names: ``"d192"``, or ``"d192v128"``."""
    return f"d{head_dim}" + ("" if v_head_dim is None else f"v{v_head_dim}")


def make_spec(
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int | None,
    kv_layout: str,
    dtype: Any,
    causal: bool = True,
    sm_scale: float | None = None,
    window_left: int | None = None,
    logits_soft_cap: float | None = None,
    tree_mask: bool = False,
    v_head_dim: int | None = None,
) -> AttentionSpec:
    """Check the arguments of `podrt.HybridAttention` and gather them; errors as there."""
    # The layout first: `podrt.hybrid_attention` reads num_kv_heads off the cache with its help.
    if kv_layout not in get_args(KvLayout):
        raise UnsupportedConfigError(f"kv_layout={kv_layout!r}: allowed are {get_args(KvLayout)}")
    num_qo_heads = positive_int("num_qo_heads", num_qo_heads)
    num_kv_heads = positive_int("num_kv_heads", num_kv_heads)
    head_dim = positive_int("head_dim", head_dim)
    if num_qo_heads % num_kv_heads:
        raise ValueError(
            f"num_qo_heads={num_qo_heads}: must be a multiple of num_kv_heads={num_kv_heads}"
        )
    if head_dim not in HEAD_DIMS:
        raise UnsupportedConfigError(f"head_dim={head_dim}: allowed are {HEAD_DIMS_TEXT}")
    if page_size is not None:
        page_size = positive_int("page_size", page_size)
    for name, value in (("causal", causal), ("tree_mask", tree_mask)):
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}={value!r}: expected True or False")
    if tree_mask and not causal:
        raise UnsupportedConfigError(
            "tree_mask=True with causal=False: a tree is a causal mask with some keys left out; "
            "leave causal at True"
        )
    return AttentionSpec(
        num_qo_heads,
        num_kv_heads,
        head_dim,
        cast(DType, dtype_name(dtype, get_args(DType))),
        Mask(
            bool(causal),
            None if window_left is None else _checked_window(window_left),
            bool(tree_mask),
        ),
        _checked_scale(sm_scale, head_dim),
        page_size,
        kv_layout,  # type: ignore[arg-type]
        None if logits_soft_cap is None else _checked_cap(logits_soft_cap),
        None if v_head_dim is None else _checked_v_head_dim(v_head_dim, head_dim),
    )


def positive_int(name: str, value: Any) -> int:
    """Return an int of Python, NumPy or whatever else counts as one; a bool does not."""
    return whole_number(name, value, 1)


def whole_number(name: str, value: Any, least: int) -> int:
    """Return such an int that is not less than `least`."""
    number = _int(name, value, "an int")
    if number < least:
        raise ValueError(f"{name}={number}: must be at least {least}")
    return number


def _int(name: str, value: Any, expected: str) -> int:
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected {expected}") from None


def _checked_v_head_dim(v_head_dim: Any, head_dim: int) -> int | None:
    """Return None for values as wide as keys, so that such layers are equal."""
    checked = positive_int("v_head_dim", v_head_dim)
    if checked not in HEAD_DIMS:
        raise UnsupportedConfigError(f"v_head_dim={checked}: allowed are {HEAD_DIMS_TEXT}")
    if checked > head_dim:
        raise UnsupportedConfigError(
            f"v_head_dim={checked}: values may be narrower than the keys of head_dim={head_dim}, "
            "but not wider; pad q and the keys with zeros to the width of the values, and give "
            "sm_scale"
        )
    return None if checked == head_dim else checked


def _checked_window(window_left: Any) -> int:
    keys = _int("window_left", window_left, "an int or None")
    if keys < 0:
        raise ValueError(
            f"window_left={keys}: must be at least 0, the keys before its own that a token sees; "
            "pass None for all"
        )
    return keys


def _checked_scale(sm_scale: float | None, head_dim: int) -> float:
    if sm_scale is None:
        return float(head_dim**-0.5)
    scale = _positive_number("sm_scale", sm_scale)
    # The kernels multiply by sm_scale * log2(e) in float32, -2^100 for a row that sees no key too.
    if not _LEAST_SCALE <= scale <= _LARGEST_SCALE:
        raise ValueError(
            f"sm_scale={sm_scale!r}: must be from {_LEAST_SCALE} to {_LARGEST_SCALE:g}, so that "
            "scaled scores fit a float32"
        )
    return scale


def _checked_cap(logits_soft_cap: float) -> float:
    cap = _positive_number("logits_soft_cap", logits_soft_cap)
    # In float32 the kernels divide by it and multiply as with sm_scale.
    if not _LEAST_CAP <= cap <= _LARGEST_SCALE:
        raise ValueError(
            f"logits_soft_cap={logits_soft_cap!r}: must be from {_LEAST_CAP} to "
            f"{_LARGEST_SCALE:g}; pass None for no cap"
        )
    return cap


def _positive_number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: expected a number or None")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}={value!r}: must be finite and greater than 0")
    return number
