"""The attention function that layers call, under two names.

``"podrt"`` is for `generate`, ``"podrt_flash"`` for continuous batching, which takes no name
without "flash" (and reads digits after that word as versions of FlashAttention).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_dynamo_compiling
from transformers import AttentionInterface, AttentionMaskInterface

from podrt.errors import UnsupportedConfigError
from podrt.integrations.transformers.dense import dense_attention
from podrt.integrations.transformers.engine import Engine
from podrt.integrations.transformers.failures import StepError
from podrt.integrations.transformers.hooks import ENGINE
from podrt.integrations.transformers.layers import (
    layer_of_call,
    require_same_dims,
    sinks_of,
)
from podrt.integrations.transformers.masks import seen_keys
from podrt.integrations.transformers.policies import policy_of

DENSE, PAGED = "podrt", "podrt_flash"


def register() -> None:
    """Make both names known to transformers. Models that do not ask for them are not concerned."""
    for name in (DENSE, PAGED):
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, seen_keys)


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
    StepError
        The same in continuous batching: the requests of the step fail, the engine goes on.
    """
    engine = arguments.get(ENGINE)
    if engine is not None:
        if is_dynamo_compiling():
            given = module, query, key, value, attention_mask
            return _outside_of_graphs(*given, scaling=scaling, **arguments)  # type: ignore[no-any-return]
        try:
            return paged_attention(engine, module, query, key, value, scaling, arguments), None
        except StepError:
            raise
        except Exception as error:
            raise StepError(
                f"podrt could not run {type(module).__name__}, layer {module.layer_idx}: {error}"
            ) from error
    if "write_index" in arguments:
        raise UnsupportedConfigError(
            f"{type(module).__name__}: continuous batching reached podrt without a plan; make its "
            "manager with model.init_continuous_batching() after "
            "podrt.integrations.transformers.enable(model), or give one that was made by hand to "
            "attach() of what enable returned"
        )
    require_same_dims(type(module).__name__, key.shape[-1], value.shape[-1])
    layer = layer_of_call(module, query, key, scaling, arguments)
    policy, sinks = policy_of(getattr(module, "config", None)), sinks_of(arguments)
    return dense_attention(layer, query, key, value, attention_mask, sinks, policy), None


def paged_attention(
    engine: Engine,
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    scaling: float | None,
    arguments: dict[str, Any],
) -> Any:
    # In few calls, as `WriteAndRun` does the rest.
    layer_idx, slots = module.layer_idx, arguments["write_index"][0]
    sinks = sinks_of(arguments) if "s_aux" in arguments else None
    get = arguments.get
    # All that `layer_of_call` looks at but tensors: calls that are equal in this, with tensors that
    # lie alike, ask for the same layer.
    asked = (
        module,
        scaling,
        get("position_bias") is None,
        get("dropout"),
        get("is_causal", True),
        get("sliding_window"),
        get("softcap"),
    )
    short_way = engine.short_ways[layer_idx]
    if short_way is not None and asked == engine.checked.get(layer_idx):
        k_pages, v_pages = engine.pages[layer_idx]
        out = short_way(query, key, value, k_pages, v_pages, slots, None, sinks)
        if out is not None:
            return out
    _require_as_planned(engine, module, query, key, scaling, arguments)
    engine.checked[layer_idx] = asked
    return engine.attend(layer_idx, query, key, value, slots, sinks)


#: Not for `torch.compile` to look into. What is called so takes longer also where nothing compiles.
_outside_of_graphs = torch.compiler.disable(attention)


def _require_as_planned(
    engine: Engine,
    module: Any,
    query: Any,
    key: Any,
    scaling: float | None,
    arguments: dict[str, Any],
) -> None:
    """Raise UnsupportedConfigError unless a layer calls attention as it was planned."""
    called = layer_of_call(module, query, key, scaling, arguments)
    planned = engine.layers[module.layer_idx]
    if scaling is None:
        called = called._replace(sm_scale=planned.sm_scale)
    if called != planned:
        raise UnsupportedConfigError(
            f"{type(module).__name__}: layer {module.layer_idx} calls attention as {called}; by "
            f"its config it was planned as {planned}"
        )
