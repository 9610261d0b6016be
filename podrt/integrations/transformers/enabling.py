"""`enable`: from one model to podrt and back."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from podrt.errors import UnsupportedConfigError
from podrt.integrations.transformers import policies
from podrt.integrations.transformers.engine import Engine, Record
from podrt.integrations.transformers.functions import PAGED
from podrt.integrations.transformers.hooks import attach
from podrt.integrations.transformers.layers import Layer, layer_of
from podrt.integrations.transformers.versions import require_supported
from podrt.policy.policies import Policy, parse_policy

_ENABLED = "_podrt_enabled"
_FALLBACKS = (None, "sdpa")
_log = logging.getLogger("podrt")


class Status(NamedTuple):
    """What runs a model's attention.

    Attributes
    ----------
    enabled : bool
        Whether podrt does.
    reason : str
        Why, or why not.
    steps : int
        Steps of continuous batching that were planned since `enable`.
    kernels : tuple of str
        Of the step planned last.
    """

    enabled: bool
    reason: str
    steps: int = 0
    kernels: tuple[str, ...] = ()


class Enabled:
    """A model that runs on podrt, until `disable` or the end of a ``with`` block."""

    def __init__(self, model: Any, layer: Layer, policy: str | Policy) -> None:
        self._model, self._layer, self._policy = model, layer, policy
        self._record = Record()
        self._configs = list(
            {id(c): c for c in (model.config, model.config.get_text_config())}.values()
        )
        self._names = [config._attn_implementation for config in self._configs]
        self._init = model.init_continuous_batching
        for config in self._configs:
            config._attn_implementation_internal = PAGED
            policies.keep(config, policy)
        model.init_continuous_batching = self._init_continuous_batching
        setattr(model, _ENABLED, self)

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()

    def disable(self) -> None:
        """Give the model its own attention back; a manager that it keeps for later is destroyed.

        Twice does no harm.
        """
        if getattr(self._model, _ENABLED, None) is not self:
            return
        self._model.destroy_cached_continuous_batching_manager()
        for config, name in zip(self._configs, self._names, strict=True):
            config._attn_implementation_internal = name
            policies.forget(config)
        del self._model.init_continuous_batching
        delattr(self._model, _ENABLED)

    def attach(self, manager: Any) -> None:
        """Have a manager that was made by hand run on podrt, as those of the model's methods do.

        Parameters
        ----------
        manager : ContinuousBatchingManager
            Of this model, not started yet.

        Raises
        ------
        ValueError
            It serves another model, or has begun.
        RuntimeError
            `disable` has been called.
        """
        if getattr(self._model, _ENABLED, None) is not self:
            raise RuntimeError("attach: podrt is disabled for this model; call enable(model) again")
        if manager.model is not self._model:
            raise ValueError("manager: serves another model than the one that was enabled")
        if manager.batch_processor is not None:
            raise ValueError("manager: has begun without podrt; attach it before it starts")
        attach(manager, self._engine)

    def status(self) -> Status:
        """Return what ran so far."""
        if not self._record.steps:
            return Status(True, "no step of continuous batching was planned so far")
        reason = "continuous batching runs on podrt"
        return Status(True, reason, self._record.steps, self._record.kernels)

    def _init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        manager = self._init(*args, **kwargs)
        attach(manager, self._engine)
        return manager

    def _engine(self, processor: Any) -> Engine:
        return Engine(processor, self._layer, self._policy, self._record)


def enable(
    model: Any, *, policy: str | Policy = "auto", fallback: str | None = None
) -> Enabled | None:
    """Have a model's continuous batching, and its `generate`, run on podrt.

    ``generate_batch``, ``init_continuous_batching`` and managers that it returns read the paged
    cache where it lies, after one plan a step. CUDA graphs, the engine's default on a GPU, serve
    any batch of their number of tokens. Nothing but this model is changed.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder in bfloat16 or float16, on a GPU, or on a CPU, where attention is exact and slow.
    policy : str or Policy
        As `podrt.HybridAttention`.
    fallback : "sdpa", optional
        What a model that podrt cannot serve gets instead, with a warning. None raises.

    Returns
    -------
    Enabled or None
        A context manager with `disable`, `status`, and `attach` for managers that were made by
        hand; None where the fallback was taken.

    Raises
    ------
    UnsupportedConfigError
        podrt cannot serve the model; names what it asks for.
    ImportError
        This release of transformers is not supported.
    ValueError
        `fallback` is neither; or the model is enabled already, or has a manager.
    """
    require_supported()
    parse_policy(policy)
    if fallback not in _FALLBACKS:
        raise ValueError(f'fallback={fallback!r}: must be "sdpa" or None')
    if getattr(model, _ENABLED, None) is not None:
        raise ValueError("model: runs on podrt already; call disable() on what enable returned")
    if getattr(model, "_cached_continuous_batching_manager", None) is not None:
        raise ValueError(
            "model: keeps a manager of continuous batching; call "
            "model.destroy_cached_continuous_batching_manager() first"
        )
    try:
        layer = layer_of(model)
    except UnsupportedConfigError as error:
        if fallback is None:
            raise
        _log.warning("podrt cannot serve this model, %s runs instead: %s", fallback, error)
        model.set_attn_implementation(fallback)
        return None
    return Enabled(model, layer, policy)


def status(model: Any) -> Status:
    """Tell whether a model's attention runs on podrt, and what ran so far."""
    enabled = getattr(model, _ENABLED, None)
    if enabled is None:
        name = model.config._attn_implementation
        return Status(False, f"attention is {name!r}; call enable(model)")
    found: Status = enabled.status()
    return found
