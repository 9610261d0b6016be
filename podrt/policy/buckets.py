"""Batches that are alike share a bucket: what wins for one of them is taken for all."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import Mask

#: Steps from a number to its double.
_STEPS = 2


_ALL_KEYS = Mask()


class Bucket(NamedTuple):
    """A hybrid batch, rounded: each number is the nearest power of the square root of two.

    Attributes
    ----------
    prefill_tokens, prefill_keys : int
        Exponents of the query tokens of all prefills, and of the keys that those of a request see
        together, in the mean over the tokens.
    decodes, decode_keys : int
        Exponents of the number of decodes, which are requests of one token, and of the keys that
        they see in the mean.
    """

    prefill_tokens: int
    prefill_keys: int
    decodes: int
    decode_keys: int

    def __str__(self) -> str:
        """Return the batch in its middle, such as ``"2048@16384 + 64x8192"``."""
        tokens, keys, decodes, decode_keys = (round(2 ** (each / _STEPS)) for each in self)
        return f"{tokens}@{keys} + {decodes}x{decode_keys}"


def bucket_of(batch: HybridBatch, mask: Mask = _ALL_KEYS) -> Bucket | None:
    """Return the bucket of a batch under a mask; None where it lacks a side, or keys."""
    if batch.max_q_len <= 1 or not batch.num_requests:
        return None
    are_decodes = batch.q_lens == 1
    decodes = int(np.count_nonzero(are_decodes))
    tokens = batch.total_tokens - decodes
    if not decodes:
        return None
    q_lens = batch.q_lens.astype(np.float64)
    keys = mask.seen_keys(q_lens, batch.kv_lens.astype(np.float64))
    decode_keys = int(keys[are_decodes].sum())
    token_keys = float(q_lens @ keys) - decode_keys
    if not (decode_keys and token_keys):
        return None
    return Bucket(
        _exponent(tokens),
        _exponent(token_keys / tokens),
        _exponent(decodes),
        _exponent(decode_keys / decodes),
    )


def layer_name(spec: AttentionSpec, family: str) -> str:
    """Return what winners depend on beside the batch: ``"hopper 32/8 d128 bfloat16 page16"``."""
    pages = "contiguous" if spec.page_size is None else f"page{spec.page_size}"
    mask = "" if spec.mask.causal else " full"
    if spec.mask.window_left is not None:
        mask += f" window{spec.mask.window_left}"
    cap = "" if spec.logits_soft_cap is None else " softcap"
    heads = f"{spec.num_qo_heads}/{spec.num_kv_heads}"
    tree = " tree" if spec.mask.tree else ""
    return f"{family} {heads} {spec.kernel.heads_tag} {spec.dtype} {pages}{mask}{cap}{tree}"


def _exponent(value: float) -> int:
    return round(_STEPS * math.log2(value))
