"""`enable`: from one model to podrt and back."""

from __future__ import annotations

import logging
import weakref
from typing import Any, NamedTuple

from podrt.errors import UnsupportedConfigError
from podrt.integrations.transformers import policies
from podrt.integrations.transformers.engine import Engine, Record
from podrt.integrations.transformers.functions import PAGED
from podrt.integrations.transformers.hooks import attach
from podrt.integrations.transformers.layers import Layer, layers_of
from podrt.integrations.transformers.versions import require_supported
from podrt.policy.policies import Policy, policy_of

_ENABLED = "_podrt_enabled"
FALLBACK = "sdpa"
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
    """A model that runs on podrt, or on a fallback, until `disable` or the end of a ``with`` block.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    layers : dict of int to Layer, or None
        Its attention layers; None where the fallback runs them.
    policy : str or Policy
        As `podrt.HybridAttention`.
    reason : str
        Why the fallback runs.
    shared_prefixes : bool
        As `enable`.
    """

    def __init__(
        self,
        model: Any,
        layers: dict[int, Layer] | None,
        policy: str | Policy,
        reason: str = "",
        *,
        shared_prefixes: bool = False,
    ) -> None:
        self._shared_prefixes = shared_prefixes
        self._model, self._layers, self._policy, self._reason = model, layers, policy, reason
        self._record = Record()
        self._managers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._configs = _configs_of(model)
        self._names = [config._attn_implementation for config in self._configs]
        if layers is None:
            model.set_attn_implementation(FALLBACK)
        else:
            self._init = model.init_continuous_batching
            model.init_continuous_batching = self._init_continuous_batching
            for config in (model.config, model.config.get_text_config()):
                config._attn_implementation_internal = PAGED
                policies.keep(config, policy)
        setattr(model, _ENABLED, self)

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()

    def disable(self) -> None:
        """Give the model its own attention back; a manager that it keeps for later is destroyed.

        Twice does no harm.

        Raises
        ------
        RuntimeError
            A manager is still running.
        """
        if not self._is_enabled():
            return
        if any(manager.is_running() for manager in self._managers):
            raise RuntimeError(
                f"{type(self._model).__name__}: continuous batching is still running; stop its "
                "manager before podrt is disabled"
            )
        if self._layers is not None:
            self._model.destroy_cached_continuous_batching_manager()
            del self._model.init_continuous_batching
        for config, name in zip(self._configs, self._names, strict=True):
            config._attn_implementation_internal = name
            policies.forget(config)
        delattr(self._model, _ENABLED)

    def attach(self, manager: Any) -> None:
        """Have a manager that was made by hand run on podrt.

        Those of ``init_continuous_batching`` do already.

        Parameters
        ----------
        manager : ContinuousBatchingManager
            Of this model, made since `enable`, not started yet.

        Raises
        ------
        ValueError
            It is another model's, or has begun.
        RuntimeError
            podrt is disabled, or a fallback runs the model.
        """
        self._require_enabled()
        if manager.model is not self._model:
            raise ValueError("manager: serves another model than the one that was enabled")
        if manager.batch_processor is not None:
            raise ValueError("manager: has begun without podrt; attach it before it starts")
        self._attach(manager)

    def status(self) -> Status:
        """Return what ran so far."""
        if self._layers is None:
            return Status(False, f"{FALLBACK} runs instead: {self._reason}")
        if not self._record.steps:
            return Status(True, "no step of continuous batching was planned so far")
        reason = "continuous batching runs on podrt"
        return Status(True, reason, self._record.steps, self._record.kernels)

    def __deepcopy__(self, memo: object) -> Enabled:
        raise TypeError(
            f"{type(self._model).__name__}: runs on podrt, and a copy would share its state; call "
            "disable() before the model is copied"
        )

    def _init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        manager = self._init(*args, **kwargs)
        self._attach(manager)  # again, if the model kept it for this call
        return manager

    def _attach(self, manager: Any) -> None:
        attach(manager, self._engine, self._require_enabled)
        self._managers.add(manager)

    def _engine(self, processor: Any) -> Engine:
        assert self._layers is not None
        return Engine(
            processor,
            self._layers,
            self._policy,
            self._record,
            shared_prefixes=self._shared_prefixes,
        )

    def _is_enabled(self) -> bool:
        return getattr(self._model, _ENABLED, None) is self

    def _require_enabled(self) -> None:
        if self._layers is None or not self._is_enabled():
            raise RuntimeError(
                f"{type(self._model).__name__}: does not run on podrt, it is disabled or sdpa "
                "serves it; call enable(model) and make a new manager"
            )


def _configs_of(model: Any) -> list[Any]:
    """Return the configs of a model and its parts, all of which the fallback may change."""
    found = [model.config, model.config.get_text_config()]
    found += [part.config for part in model.modules() if hasattr(part, "config")]
    named = {id(each): each for each in found if hasattr(each, "_attn_implementation_internal")}
    return list(named.values())


def enable(
    model: Any,
    *,
    policy: str | Policy = "auto",
    deterministic: bool = False,
    shared_prefixes: bool = False,
    fallback: str | None = None,
) -> Enabled:
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
    deterministic : bool
        As `podrt.HybridAttention`, for all plans of the model: attention of a request's tokens does
        not depend on what else is in a step. Which of its tokens a step has, and what else the
        model computes, still may (``docs/transformers.md``).
    shared_prefixes : bool
        Decodes that follow one another in a step and begin with the same blocks of the cache, as
        those of a common system prompt do, have those keys read once for all of them. Graphs then
        hold a second, short launch a layer. Layers with a window are as ever, and so is a CPU.
    fallback : "sdpa", optional
        What a model that podrt cannot serve gets instead, with a warning. None raises.

    Returns
    -------
    Enabled
        A context manager with `disable`, `status`, and `attach` for managers made by hand. Where
        the fallback was taken its status says so.

    Raises
    ------
    UnsupportedConfigError
        podrt cannot serve the model; names what it asks for. Or `policy` goes by all of a batch,
        which `deterministic` rules out.
    ImportError
        This release of transformers is not supported.
    ValueError, TypeError
        An argument makes no sense; or the model is enabled already, or has a manager.
    """
    require_supported()
    policy = policy_of(policy, deterministic)
    if fallback not in (None, FALLBACK):
        raise ValueError(f'fallback={fallback!r}: must be "{FALLBACK}" or None')
    if deterministic and fallback is not None:
        raise UnsupportedConfigError(
            f"fallback={fallback!r}: promises nothing of the rest of a batch, which "
            "deterministic=True asks for; leave one of them out"
        )
    if shared_prefixes and policy.deterministic:
        raise UnsupportedConfigError(
            "shared_prefixes=True: results then depend on who shares keys, which "
            "deterministic=True rules out; leave one of them out"
        )
    if getattr(model, _ENABLED, None) is not None:
        raise ValueError("model: runs on podrt already; call disable() on what enable returned")
    if getattr(model, "_cached_continuous_batching_manager", None) is not None:
        raise ValueError(
            "model: keeps a manager of continuous batching; call "
            "model.destroy_cached_continuous_batching_manager() first"
        )
    try:
        layers = layers_of(model)
    except UnsupportedConfigError as error:
        if fallback is None:
            raise
        _log.warning("podrt cannot serve this model, %s runs instead: %s", fallback, error)
        return Enabled(model, None, policy, str(error))
    return Enabled(model, layers, policy, shared_prefixes=shared_prefixes)


def status(model: Any) -> Status:
    """Tell whether a model's attention runs on podrt, and what ran so far."""
    enabled = getattr(model, _ENABLED, None)
    if enabled is None:
        name = model.config._attn_implementation
        return Status(False, f"attention is {name!r}; call enable(model)")
    found: Status = enabled.status()
    return found
