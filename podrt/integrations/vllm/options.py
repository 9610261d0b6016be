"""What users ask of podrt: its own options in vLLM's configuration, and vLLM's batch invariance."""

from __future__ import annotations

from typing import Any

import vllm.envs as envs

from podrt.errors import UnsupportedConfigError
from podrt.integrations.vllm.group import model_of
from podrt.policy.policies import Policy

_OPTIONS = ("policy", "deterministic")


def policy_of(config: Any) -> str | Policy:
    """Return podrt's policy, from vLLM's ``additional_config``; "auto" where it says none.

    ``{"podrt": {"policy": "hopper"}}`` names one, ``{"podrt": {"policy": {"serial": true}}}`` has
    the fields of a `podrt.Policy`.

    Raises
    ------
    UnsupportedConfigError
        There are other options than those of podrt, or no such policy.
    """
    policy = _options_of(config).get("policy", "auto")
    if isinstance(policy, dict):
        try:
            return Policy(**policy)
        except TypeError as error:
            raise UnsupportedConfigError(
                f"additional_config: podrt's policy={policy!r}: {error}"
            ) from error
    return str(policy)


def is_deterministic(config: Any) -> bool:
    """Return whether bits of a request must not depend on the rest of a step.

    As ``{"podrt": {"deterministic": true}}`` of ``additional_config`` says, or its policy, and
    wherever VLLM_BATCH_INVARIANT is set.

    Raises
    ------
    UnsupportedConfigError
        The option is no bool, or denies what VLLM_BATCH_INVARIANT or the policy asks for.
    """
    said, policy = _options_of(config).get("deterministic"), policy_of(config)
    if said is not None and not isinstance(said, bool):
        raise UnsupportedConfigError(
            f"additional_config: podrt's deterministic={said!r}; allowed are true and false"
        )
    is_asked = envs.VLLM_BATCH_INVARIANT or (isinstance(policy, Policy) and policy.deterministic)
    if said is False and is_asked:
        raise UnsupportedConfigError(
            "additional_config: podrt's deterministic=False, but VLLM_BATCH_INVARIANT or its "
            "policy asks for it; leave one of them out"
        )
    return bool(said or is_asked)


def require_invariant_chunks(config: Any) -> None:
    """Raise UnsupportedConfigError where VLLM_BATCH_INVARIANT is set and could not be kept.

    podrt's bits follow from a request's own tokens in a step. Options by which other requests
    decide which tokens those are need ``deterministic`` to be asked for by its name.
    """
    if not envs.VLLM_BATCH_INVARIANT or config is None:
        return
    if _options_of(config).get("deterministic") is True:
        return
    asked = {
        "enable_chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        "enable_prefix_caching": config.cache_config.enable_prefix_caching,
        "speculative_config": config.speculative_config is not None,
    }
    found = [name for name, is_on in asked.items() if is_on]
    if found:
        raise UnsupportedConfigError(
            f"model {model_of(config)!r}: VLLM_BATCH_INVARIANT=1 with {', '.join(found)}: there "
            "other requests decide which tokens of a request are computed together, on which "
            "podrt's bits depend; turn that off, or accept it with additional_config="
            '{"podrt": {"deterministic": true}}, or choose another --attention-backend'
        )


def _options_of(config: Any) -> dict[str, Any]:
    additional = config.additional_config
    options = additional.get("podrt", {}) if isinstance(additional, dict) else {}
    if not isinstance(options, dict) or set(options) - set(_OPTIONS):
        raise UnsupportedConfigError(
            f"additional_config: got podrt={options!r}, allowed are the options {_OPTIONS}, as in "
            '{"podrt": {"policy": "auto"}}'
        )
    return options
