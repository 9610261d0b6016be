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

#: Arguments that layers pass where scores are more than a scaled product, and what each means.
_FEATURES = {
    "sliding_window": "a sliding window",
    "softcap": "a soft-cap of its scores",
    "s_aux": "attention sinks",
    "position_bias": "a bias of its scores",
}


class Layer(NamedTuple):
    """An attention layer, as a kernel is compiled for it.

    Attributes
    ----------
    num_qo_heads, num_kv_heads, head_dim : int
    dtype : str
        ``"bfloat16"`` or ``"float16"``.
    sm_scale : float
    """

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    sm_scale: float

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
        kinds = {"kv_layout": kv_layout, "dtype": self.dtype, "sm_scale": self.sm_scale}
        if device.type == "cpu":
            return HostAttention(*shape, page_size=page_size, **kinds)  # type: ignore[arg-type]
        return HybridAttention(
            *shape,
            page_size=page_size,
            policy=policy,
            device=device.index,
            **kinds,  # type: ignore[arg-type]
        )


def layer_of(model: Any) -> Layer:
    """Return the layer that all attention of a model is.

    Raises
    ------
    UnsupportedConfigError
        Names the model, what it asks for, and what podrt has.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    for feature, value in _features_of(config):
        raise UnsupportedConfigError(f"{name}: config.{feature}={value!r}: {_NOT_YET}")
    layers = list(_attention_layers(model))
    if not layers:
        raise UnsupportedConfigError(
            f"{name}: has no attention layer with a `scaling` and a `layer_idx`; podrt serves "
            "models whose layers call transformers' attention interface"
        )
    for layer in layers:
        if not getattr(layer, "is_causal", True):
            raise UnsupportedConfigError(
                f"{name}: layer {layer.layer_idx} is not causal; podrt serves decoders"
            )
        for feature in ("sliding_window", "sinks"):
            if getattr(layer, feature, None) is not None:
                raise UnsupportedConfigError(
                    f"{name}: layer {layer.layer_idx} has {feature}: {_NOT_YET}"
                )
    scales = sorted({float(layer.scaling) for layer in layers})
    if len(scales) > 1:
        raise UnsupportedConfigError(f"{name}: its layers scale by {scales}; one scale is served")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    found = Layer(
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        head_dim,
        str(model.dtype).removeprefix("torch."),
        scales[0],
    )
    try:
        found.attention(torch.device("cpu"), "auto")
    except (UnsupportedConfigError, ValueError) as error:
        raise UnsupportedConfigError(f"{name}: {error}") from error
    return found


def require_plain(module: Any, arguments: dict[str, Any]) -> None:
    """Refuse a call that asks for more than a causal, scaled product.

    Raises
    ------
    UnsupportedConfigError
        Names the module and the argument.
    """
    name = type(module).__name__
    for argument, feature in _FEATURES.items():
        if arguments.get(argument) is not None:
            raise UnsupportedConfigError(
                f"{name}: {argument}={arguments[argument]!r} asks for {feature}: {_NOT_YET}"
            )
    if arguments.get("dropout"):
        raise UnsupportedConfigError(
            f"{name}: dropout={arguments['dropout']}: podrt is for inference; call model.eval()"
        )
    if not (arguments.get("is_causal", True) and getattr(module, "is_causal", True)):
        raise UnsupportedConfigError(f"{name}: is not causal; podrt serves decoders")


_NOT_YET = (
    "podrt has no sliding windows, soft-caps, sinks or biases yet; use another "
    'attn_implementation, or fallback="sdpa"'
)


def _features_of(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a config asks for that podrt has not."""
    for feature in ("attn_logit_softcapping", "sliding_window"):
        if getattr(config, feature, None) is not None:
            yield feature, getattr(config, feature)
    kinds = getattr(config, "layer_types", None) or []
    if any(kind != "full_attention" for kind in kinds):
        yield "layer_types", sorted(set(kinds))


def _attention_layers(model: Any) -> Iterator[Any]:
    for module in model.modules():
        if hasattr(module, "scaling") and getattr(module, "layer_idx", None) is not None:
            yield module
