"""What the attention layers of a model ask for, and whether podrt has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from podrt.attention import HybridAttention
from podrt.errors import UnsupportedConfigError
from podrt.host_attention import HostAttention
from podrt.policy.policies import Policy

Attention = HybridAttention | HostAttention

_SLIDING, _FULL = "sliding_attention", "full_attention"


class Layer(NamedTuple):
    """An attention layer, as a kernel is compiled for it.

    Attributes
    ----------
    num_qo_heads, num_kv_heads, head_dim : int
    dtype : str
        ``"bfloat16"`` or ``"float16"``.
    sm_scale : float
    window_left : int or None
        Keys before its own that a token sees; one less than transformers' `sliding_window`.
    logits_soft_cap : float or None
    """

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    sm_scale: float
    window_left: int | None = None
    logits_soft_cap: float | None = None

    def attention(
        self,
        device: torch.device,
        policy: str | Policy,
        *,
        page_size: int | None = None,
        kv_layout: str = "NHD",
    ) -> Attention:
        """Return attention of this layer on a GPU, or exact attention in host memory."""
        shape = self.num_qo_heads, self.num_kv_heads, self.head_dim
        kinds = {
            "kv_layout": kv_layout,
            "dtype": self.dtype,
            "sm_scale": self.sm_scale,
            "window_left": self.window_left,
            "logits_soft_cap": self.logits_soft_cap,
        }
        if device.type == "cpu":
            return HostAttention(*shape, page_size=page_size, **kinds)  # type: ignore[arg-type]
        return HybridAttention(
            *shape,
            page_size=page_size,
            policy=policy,
            device=device.index,
            **kinds,  # type: ignore[arg-type]
        )


def layers_of(model: Any) -> dict[int, Layer]:
    """Return the attention layers of a model by their index.

    Raises
    ------
    UnsupportedConfigError
        Names the model, what it asks for, and what podrt has.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {_SLIDING, _FULL}
    if kinds:
        raise UnsupportedConfigError(
            f"{name}: config.layer_types has {sorted(kinds)}; podrt serves {_FULL} and {_SLIDING}"
        )
    modules = list(_attention_layers(model))
    if not modules:
        raise UnsupportedConfigError(
            f"{name}: has no attention layer with a `scaling` and a `layer_idx`; podrt serves "
            "models whose layers call transformers' attention interface"
        )
    for module in modules:
        if not getattr(module, "is_causal", True):
            raise UnsupportedConfigError(
                f"{name}: layer {module.layer_idx} is not causal; podrt serves decoders"
            )
        values = getattr(module, "v_head_dim", None)
        keys = getattr(module, "qk_head_dim", getattr(module, "head_dim", None))
        if keys is not None and values is not None:
            require_same_dims(name, keys, values)
    scales = sorted({float(module.scaling) for module in modules})
    if len(scales) > 1:
        raise UnsupportedConfigError(f"{name}: its layers scale by {scales}; one scale is served")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layer = Layer(
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        head_dim,
        str(model.dtype).removeprefix("torch."),
        scales[0],
        logits_soft_cap=getattr(config, "attn_logit_softcapping", None),
    )
    found = {
        module.layer_idx: layer._replace(window_left=_window_of(module, config))
        for module in modules
    }
    try:
        for each in set(found.values()):
            each.attention(torch.device("cpu"), "auto")
    except (UnsupportedConfigError, ValueError) as error:
        raise UnsupportedConfigError(f"{name}: {error}") from error
    return found


def layer_of_call(
    module: Any, query: Any, key: Any, scaling: float | None, arguments: dict[str, Any]
) -> Layer:
    """Return the layer that a call of the attention interface asks for.

    Raises
    ------
    UnsupportedConfigError
        Names the module and the argument that podrt cannot serve.
    """
    name = type(module).__name__
    if arguments.get("position_bias") is not None:
        raise UnsupportedConfigError(
            f"{name}: position_bias asks for a bias of its scores, which podrt has not; use "
            'another attn_implementation, or fallback="sdpa"'
        )
    if arguments.get("dropout"):
        raise UnsupportedConfigError(
            f"{name}: dropout={arguments['dropout']}: podrt is for inference; call model.eval()"
        )
    if not (arguments.get("is_causal", True) and getattr(module, "is_causal", True)):
        raise UnsupportedConfigError(f"{name}: is not causal; podrt serves decoders")
    window = arguments.get("sliding_window")
    config = getattr(module, "config", None)
    if window is None and config is not None and _window_of(module, config) is not None:
        raise UnsupportedConfigError(
            f"{name}: layer {module.layer_idx} has a sliding window in its config and none in its "
            "call, so it lies in its mask alone, which podrt does not look at"
        )
    head_dim = query.shape[-1]
    return Layer(
        query.shape[1],
        key.shape[1],
        head_dim,
        str(query.dtype).removeprefix("torch."),
        head_dim**-0.5 if scaling is None else scaling,
        None if window is None else window - 1,
        arguments.get("softcap"),
    )


def require_same_dims(name: str, key_dim: int, value_dim: int) -> None:
    """Raise UnsupportedConfigError if heads of values are not as wide as those of keys."""
    if value_dim != key_dim:
        raise UnsupportedConfigError(
            f"{name}: has values of {value_dim} elements beside keys of {key_dim}, which "
            "podrt.HybridAttention serves, but not this integration; use another "
            'attn_implementation, or fallback="sdpa"'
        )


def sinks_of(arguments: dict[str, Any]) -> Any:
    """Return the sinks of a call as podrt takes them, or None.

    Converted anew at every call: weights may change in place.
    """
    sinks = arguments.get("s_aux")
    return None if sinks is None else sinks.detach().to(torch.float32)


def _window_of(module: Any, config: Any) -> int | None:
    """Return the keys before its own that a layer's tokens see, as models say it.

    Layers have a `sliding_window` of their own, or all of those that are sliding the config's.
    """
    if hasattr(module, "sliding_window"):
        window = module.sliding_window
    else:
        kinds = getattr(config, "layer_types", None)
        is_sliding = kinds is None or kinds[module.layer_idx] == _SLIDING
        window = getattr(config, "sliding_window", None) if is_sliding else None
    return None if window is None else window - 1


def _attention_layers(model: Any) -> Iterator[Any]:
    for module in model.modules():
        if hasattr(module, "scaling") and getattr(module, "layer_idx", None) is not None:
            yield module
