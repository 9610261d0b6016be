"""The attention function that layers call, under two names.

``"podrt"`` is for `generate`, ``"podrt_flash"`` for continuous batching, which takes no name
without "flash" (and reads digits after that word as versions of FlashAttention).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.masking_utils import flash_attention_mask

from podrt.errors import UnsupportedConfigError
from podrt.integrations.transformers.dense import dense_attention
from podrt.integrations.transformers.hooks import ENGINE
from podrt.integrations.transformers.layers import require_plain
from podrt.integrations.transformers.policies import policy_of

DENSE, PAGED = "podrt", "podrt_flash"


def register() -> None:
    """Make both names known to transformers. Models that do not ask for them are not concerned."""
    for name in (DENSE, PAGED):
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, seen_keys)


def seen_keys(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    attention_mask: Any = None,
    **arguments: Any,
) -> Any:
    """Return which keys are no padding, as transformers' mask interface has it.

    None where all are keys. A static cache has more rows than keys so far, which the mask of
    FlashAttention tells only of padded batches.
    """
    found = flash_attention_mask(
        batch_size, q_length, kv_length, q_offset, attention_mask=attention_mask, **arguments
    )
    num_keys = int(q_offset) + q_length
    if found is None and num_keys < kv_length:
        found = torch.ones(batch_size, num_keys, dtype=torch.bool, device=arguments.get("device"))
    return found


def attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    *,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[Any, None]:
    """Compute a layer's attention, as transformers' attention interface has it.

    Parameters
    ----------
    module : torch.nn.Module
        The layer, with `layer_idx`.
    query : tensor [batch, heads, tokens, head_dim]
    key, value : tensor [batch, KV heads, keys, head_dim]
    attention_mask : bool tensor [batch, keys], optional
        Which keys are no padding; all if None.
    scaling : float, optional
        Of the scores; ``head_dim ** -0.5`` if None.
    arguments : dict
        The rest of the interface; what podrt has not is refused.

    Returns
    -------
    (tensor [batch, tokens, heads, head_dim], None)

    Raises
    ------
    UnsupportedConfigError
        Names the module and the argument that podrt cannot serve.
    """
    require_plain(module, arguments)
    engine = arguments.get(ENGINE)
    if engine is None:
        if "write_index" in arguments:
            raise UnsupportedConfigError(
                f"{type(module).__name__}: continuous batching reached podrt without a plan; call "
                "podrt.integrations.transformers.enable(model) before making its manager, or give "
                "one that was made by hand to attach() of what enable returned"
            )
        policy = policy_of(getattr(module, "config", None))
        return dense_attention(query, key, value, attention_mask, scaling, policy), None
    if scaling is not None and scaling != engine.layer.sm_scale:
        raise UnsupportedConfigError(
            f"{type(module).__name__}: layer {module.layer_idx} scales by {scaling}, the first "
            f"by {engine.layer.sm_scale}; podrt serves one scale for all layers"
        )
    cache = arguments.pop("cache", None)
    if isinstance(cache, PagedAttentionCache):  # before 5.24 the function writes the new keys
        cache.update(key, value, module.layer_idx, kwargs=arguments)
    return engine.run(module.layer_idx, query[0].transpose(0, 1)).unsqueeze(0), None
