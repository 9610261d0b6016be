"""What vLLM's configuration says of the layers that share one metadata builder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import max_decode_query_len

from podrt.errors import UnsupportedConfigError


class LayerShape(NamedTuple):
    """What must be the same for layers to share a `podrt.HybridAttention`."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    window_left: int | None = None
    logits_soft_cap: float | None = None


class Limits(NamedTuple):
    """The largest step, as `podrt.HybridAttention.reserve` takes it."""

    max_requests: int
    max_tokens: int
    max_kv_len: int
    max_decode_tokens: int


def shapes_of(config: Any, layer_names: Iterable[str]) -> list[LayerShape]:
    """Return the different shapes of some layers; one is usual.

    Heads are those of this rank of a tensor-parallel group.

    Raises
    ------
    UnsupportedConfigError
        A layer's values are narrower than its keys, of which its `impl` is not told.
    """
    layers = get_layers_from_vllm_config(config, Attention, layer_names)
    for name, layer in layers.items():
        if layer.head_size_v != layer.head_size:
            raise UnsupportedConfigError(
                f"model {model_of(config)!r}: {name} has head_size_v={layer.head_size_v} beside "
                f"head_size={layer.head_size}; podrt's attention backend takes values as wide as "
                "keys; choose another with --attention-backend"
            )
    return list(dict.fromkeys(layer.impl.shape for layer in layers.values()))


def limits_of(config: Any) -> Limits:
    """Return the largest step that vLLM's scheduler makes."""
    scheduler = config.scheduler_config
    return Limits(
        scheduler.max_num_seqs,
        scheduler.max_num_batched_tokens,
        config.model_config.max_model_len,
        max_decode_query_len(config),
    )


def dtype_of(config: Any) -> str:
    """Return the element type of queries and outputs."""
    return str(config.model_config.dtype).removeprefix("torch.")


def model_of(config: Any) -> str:
    """Return the name of the model, for messages."""
    return str(getattr(getattr(config, "model_config", None), "model", None))
