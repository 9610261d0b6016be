"""`AttentionSpec`: what is fixed for an attention layer, checked once."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np

from podrt.errors import UnsupportedConfigError
from podrt.spec.mask import Mask
from podrt.spec.types import HEAD_DIMS, DType

KvLayout = Literal["NHD", "HND"]

_LEAST_SCALE, _LARGEST_SCALE = 1e-38, 1e8


@dataclass(frozen=True)
class KernelSpec:
    """What a kernel is compiled for; the variants of every family answer to it.

    Attributes
    ----------
    head_dim : int
        Elements of a head.
    dtype : {"bfloat16", "float16"}
        Element type of q, the caches and the output.
    mask : Mask
        Which keys a token sees.
    page_size : int or None
        Tokens of a page; None is a contiguous cache.
    """

    head_dim: int
    dtype: DType
    mask: Mask
    page_size: int | None


@dataclass(frozen=True)
class AttentionSpec:
    """An attention layer: what plans, variants, tensors and the reference must agree on.

    Attributes
    ----------
    num_qo_heads, num_kv_heads, head_dim : int
        Heads, and the size of each.
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
    """

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    mask: Mask
    sm_scale: float
    page_size: int | None
    kv_layout: KvLayout

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_qo_heads // self.num_kv_heads

    @cached_property
    def kernel(self) -> KernelSpec:
        """What its kernels are compiled for."""
        return KernelSpec(self.head_dim, self.dtype, self.mask, self.page_size)


def make_spec(
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int | None,
    kv_layout: str,
    dtype: Any,
    causal: bool = True,
    sm_scale: float | None = None,
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
        raise UnsupportedConfigError(f"head_dim={head_dim!r}: allowed are {HEAD_DIMS}")
    if page_size is not None:
        page_size = positive_int("page_size", page_size)
    if not isinstance(causal, bool | np.bool_):
        raise TypeError(f"causal={causal!r}: expected True or False")
    return AttentionSpec(
        num_qo_heads,
        num_kv_heads,
        head_dim,
        _dtype_name(dtype),
        Mask(bool(causal)),
        _checked_scale(sm_scale, head_dim),
        page_size,
        kv_layout,  # type: ignore[arg-type]
    )


def positive_int(name: str, value: Any) -> int:
    """Return an int of Python, NumPy or whatever else counts as one; a bool does not."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected an int") from None
    if number < 1:
        raise ValueError(f"{name}={number}: must be at least 1")
    return number


def _dtype_name(dtype: Any) -> DType:
    """Accept a name, or a framework's dtype such as torch.bfloat16 or numpy.float16."""
    text = getattr(dtype, "__name__", None) or str(dtype)
    name = text.rpartition(".")[2]
    if name not in get_args(DType):
        raise UnsupportedConfigError(f"dtype={dtype!r}: allowed are {get_args(DType)}")
    return name  # type: ignore[return-value]


def _checked_scale(sm_scale: float | None, head_dim: int) -> float:
    if sm_scale is None:
        return float(head_dim**-0.5)
    if not isinstance(sm_scale, Real) or isinstance(sm_scale, bool):
        raise TypeError(f"sm_scale={sm_scale!r}: expected a number or None")
    scale = float(sm_scale)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"sm_scale={sm_scale!r}: must be finite and greater than 0")
    # The kernels multiply by sm_scale * log2(e) in float32, -2^100 for a row that sees no key too.
    if not _LEAST_SCALE <= scale <= _LARGEST_SCALE:
        raise ValueError(
            f"sm_scale={sm_scale!r}: must be from {_LEAST_SCALE} to {_LARGEST_SCALE:g}, so that "
            "scaled scores fit a float32"
        )
    return scale
