"""Merging attention over disjoint sets of keys, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def reference_merge(
    outs: Sequence[npt.NDArray[Any]], lses: Sequence[npt.NDArray[Any]]
) -> tuple[Float64Array, Float64Array]:
    """Merge outputs by the weights of their log-sum-exps.

    Attention over the union of the keys is the mean of the outputs, weighted by ``exp(lse)``.

    Parameters
    ----------
    outs : arrays [tokens, heads, head_dim]
        Output of every state, at least one; any float dtype.
    lses : arrays [tokens, heads]
        Log-sum-exp of every state, natural log. A state of -inf or +inf has seen no key: its output
        does not count, whatever it is.

    Returns
    -------
    out : float64 array [tokens, heads, head_dim]
        0 where no state has seen a key.
    lse : float64 array [tokens, heads]
        -inf there.
    """
    out = np.zeros(outs[0].shape)
    exponents = np.stack([np.asarray(lse, np.float64) for lse in lses])
    seen = ~np.isinf(exponents)
    top = np.fmax.reduce(exponents, axis=0, where=seen, initial=-np.inf)
    base = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(exponents - base, where=seen, out=np.zeros(exponents.shape))
    total = weights.sum(axis=0)
    divisor = np.where(total == 0, 1.0, total)
    for partial, weight, counts in zip(outs, weights, seen, strict=True):
        values = np.where(counts[..., None], partial.astype(np.float64), 0.0)
        out += (weight / divisor)[..., None] * values
    return out, np.where(total == 0, -np.inf, base + np.log(divisor))
