"""Attention of `generate`, whose cache is one tensor [batch, heads, keys, head_dim] a layer.

The plan is made by the first layer of a forward pass and serves all of them. Without padding keys
are read where they lie. With padding they are gathered in every layer: podrt's requests begin with
their first key.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import torch

from podrt.errors import UnsupportedConfigError
from podrt.integrations.transformers.layers import Attention, Layer
from podrt.policy.policies import Policy

_of_thread = threading.local()


def dense_attention(
    layer: Layer, query: Any, key: Any, value: Any, mask: Any, sinks: Any, policy: str | Policy
) -> Any:
    """Return attention [batch, tokens, heads, head_dim] of a layer's tensors."""
    if torch.is_grad_enabled() and query.requires_grad:
        raise UnsupportedConfigError(
            "query: requires a gradient, which podrt does not compute; run under torch.no_grad()"
        )
    if mask is not None and mask.ndim != 2:
        raise UnsupportedConfigError(
            f"attention_mask: got {mask.ndim} dimensions, expected [batch, keys]: podrt serves "
            "causal attention with padding, no other masks"
        )
    planned = vars(_of_thread).setdefault("planned", {})
    owner = layer, query.device, policy
    dense = planned.get(owner)
    if dense is None:
        dense = planned[owner] = Dense(layer.attention(query.device, policy, kv_layout="HND"))
    return dense.run(query, key, value, mask, sinks)


class Padding(NamedTuple):
    """Where the tokens of a padded batch are.

    Attributes
    ----------
    keys : int64 tensor [batch, most keys of a request]
        Places of each request's keys; what lies beyond its last one does not matter.
    is_token : bool tensor [batch, tokens]
        Which rows of the queries are no padding.
    """

    keys: Any
    is_token: Any


class Dense:
    """Attention of one layer shape on one device, for one thread."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self._shape: tuple[int, int, int] | None = None
        self._mask: Any = None
        self._padding: Padding | None = None

    def run(self, query: Any, key: Any, value: Any, mask: Any, sinks: Any) -> Any:
        """Return attention [batch, tokens, heads, head_dim] of a layer."""
        batch, heads, tokens, head_dim = query.shape
        num_keys = key.shape[2] if mask is None else mask.shape[1]
        shape = batch, tokens, num_keys
        if shape != self._shape or mask is not self._mask:
            self._padding = self._plan(shape, mask)
            self._shape, self._mask = shape, mask
        rows = query.transpose(1, 2)
        if self._padding is None:
            out = self._attention.run(rows.reshape(-1, heads, head_dim), key, value, sinks=sinks)
            return out.view(batch, tokens, heads, head_dim)
        keys, is_token = self._padding
        at = keys[:, None, :, None].expand(-1, key.shape[1], -1, head_dim)
        out = torch.zeros_like(rows)
        keys, values = key.gather(2, at), value.gather(2, at)
        out[is_token] = self._attention.run(rows[is_token], keys, values, sinks=sinks)
        return out

    def _plan(self, shape: tuple[int, int, int], mask: Any) -> Padding | None:
        batch, tokens, num_keys = shape
        padding, q_lens, kv_lens = None, np.full(batch, tokens), np.full(batch, num_keys)
        if mask is not None and not bool(mask.all()):
            is_key = mask.bool()
            padding = Padding(
                (~is_key).to(torch.uint8).argsort(dim=1, stable=True),
                is_key[:, num_keys - tokens :],
            )
            kv_lens = is_key.sum(1).cpu().numpy()
            q_lens = padding.is_token.sum(1).cpu().numpy()
        qo_indptr = np.concatenate(([0], np.cumsum(q_lens))).astype(np.int32)
        self._attention.plan(qo_indptr, kv_lens.astype(np.int32))
        return padding
