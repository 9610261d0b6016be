"""One attention layer: the cache write, then attention over the cache."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import vllm.envs as envs
from vllm.config import get_current_vllm_config_or_none
from vllm.v1.attention.backend import AttentionImpl, AttentionType

from podrt.cache_write import write_cache
from podrt.errors import UnsupportedConfigError
from podrt.integrations.vllm.attention import claim_scratch
from podrt.integrations.vllm.group import LayerShape, model_of
from podrt.integrations.vllm.options import require_invariant_chunks
from podrt.spec.types import HEAD_DIMS, HEAD_DIMS_TEXT

_CACHE_TYPES = ("auto", "float16", "bfloat16")


class PodrtImpl(AttentionImpl):  # type: ignore[misc]
    """Runs one layer of a planned step.

    Attributes
    ----------
    shape : LayerShape
        Which of the builder's attentions runs it.
    writes_in_forward : bool
        Whether `forward` writes to the cache. That saves an operator of PyTorch for each layer
        where layers run outside of graphs; breakable graphs hold the write as `do_kv_cache_update`.

    Raises
    ------
    UnsupportedConfigError
        The layer asks for what podrt does not compute; names model, argument and value.
    """

    writes_in_forward: ClassVar[bool] = not envs.VLLM_USE_BREAKABLE_CUDAGRAPH

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Any = None,
        **others: Any,
    ) -> None:
        self._config = get_current_vllm_config_or_none()
        require_invariant_chunks(self._config)
        for name, value in {"alibi_slopes": alibi_slopes, **others}.items():
            if value is not None:
                raise self._refusal(name, value, "None")
        self._require("attn_type", attn_type, (AttentionType.DECODER,))
        self._require("kv_cache_dtype", kv_cache_dtype, _CACHE_TYPES)
        if head_size not in HEAD_DIMS:
            raise self._refusal("head_size", head_size, HEAD_DIMS_TEXT)
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.shape = LayerShape(
            num_heads,
            self.num_kv_heads,
            head_size,
            self.scale,
            None if sliding_window is None else sliding_window - 1,  # which counts a token's own
            logits_soft_cap or None,
        )
        if sinks is not None and tuple(sinks.shape) != (num_heads,):
            raise self._refusal("sinks.shape", tuple(sinks.shape), f"({num_heads},), one per head")
        self._loaded_sinks, self._sinks = sinks, None  # empty before weights are loaded
        # A layer that shares the cache of another one only reads it.
        self._writes = self.writes_in_forward and kv_sharing_target_layer_name is None
        self._kv_cache: Any = None
        self._keys: Any = None
        self._values: Any = None

    def forward(
        self,
        layer: Any,
        query: Any,
        key: Any,
        value: Any,
        kv_cache: Any,
        attn_metadata: Any,
        output: Any,
        output_scale: Any = None,
        output_block_scale: Any = None,
    ) -> Any:
        """Write new keys and values to the cache, and attention of the step to `output`.

        Parameters
        ----------
        layer : Attention
            The engine's layer.
        query : [tokens, num_heads, head_size]
            Rows beyond those of the step are padding, here and in all others.
        key, value : [tokens, num_kv_heads, head_size], or None
            None where something else has written them.
        kv_cache : [blocks, num_kv_heads, block_size, 2 * head_size]
            Keys and values side by side.
        attn_metadata : PodrtMetadata or None
            None in the run that measures how much memory is needed.
        output : as query
            Rows of padding stay as they are.

        Returns
        -------
        output
        """
        if attn_metadata is None:
            claim_scratch(self.shape, self._config, query.device)
            return output.fill_(0)
        if output_scale is not None or output_block_scale is not None:
            raise self._refusal("output_scale", "a tensor", "None, as outputs are not quantised")
        keys, values = self._views(kv_cache)
        attention, sinks = attn_metadata.attention_of(self.shape), self._sinks_of_weights()
        writes = self._writes and key is not None
        short_ways = attn_metadata.builder.short_ways
        tensors = query, key, value, keys, values, attn_metadata.slot_mapping, output
        if writes:
            short_way = short_ways[self.shape]
            if short_way is not None and short_way(*tensors, sinks) is not None:
                return output
            write_cache(key, value, keys, values, attn_metadata.slot_mapping)
        attention.run(
            query,
            keys,
            values,
            out=output,
            sinks=sinks,
            decodes_only=attn_metadata.decodes_only,
        )
        if writes:
            short_ways[self.shape] = attention.write_and_run_like(*tensors)
        return output

    def process_weights_after_loading(self, act_dtype: Any) -> None:
        """Take the sinks that were loaded, as float32, where graphs have read them before."""
        if self._loaded_sinks is None:
            return
        sinks = self._loaded_sinks.detach().to(torch.float32)
        if self._sinks is None:
            self._sinks = sinks
        else:
            self._sinks.copy_(sinks)

    def do_kv_cache_update(
        self, layer: Any, key: Any, value: Any, kv_cache: Any, slot_mapping: Any
    ) -> None:
        """Write new keys and values to the cache, where `forward` does not; arguments as there."""
        write_cache(key, value, *self._views(kv_cache), slot_mapping)

    def _sinks_of_weights(self) -> Any:
        if self._loaded_sinks is not None and self._sinks is None:
            self.process_weights_after_loading(None)
        return self._sinks

    def _views(self, kv_cache: Any) -> tuple[Any, Any]:
        """View the cache as keys and values, each ``[blocks, block_size, num_kv_heads, D]``.

        Once for a cache: every view costs as much as a launch.
        """
        if kv_cache is not self._kv_cache:
            if kv_cache.shape[-1] != 2 * self.head_size:
                allowed = f"{2 * self.head_size}, keys and values of the same head size"
                raise self._refusal("kv_cache.shape[-1]", kv_cache.shape[-1], allowed)
            self._keys, self._values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
            self._kv_cache = kv_cache
        return self._keys, self._values

    def _require(self, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
        if value not in allowed:
            raise self._refusal(name, value, " or ".join(map(repr, allowed)))

    def _refusal(self, name: str, value: Any, allowed: str) -> UnsupportedConfigError:
        return UnsupportedConfigError(
            f"model {model_of(self._config)!r}: {name}={value!r}; podrt's attention backend takes "
            f"{allowed}; choose another with --attention-backend"
        )
