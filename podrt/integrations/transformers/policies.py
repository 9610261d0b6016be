"""The policy that `enable` was given, found by the configuration that a model's layers hold."""

from __future__ import annotations

from typing import Any

from podrt.policy.policies import Policy

_of_config: dict[int, str | Policy] = {}  # configurations cannot be hashed


def keep(config: Any, policy: str | Policy) -> None:
    """Have layers of this configuration run by a policy, until `forget`."""
    _of_config[id(config)] = policy


def forget(config: Any) -> None:
    """Undo `keep`."""
    _of_config.pop(id(config), None)


def policy_of(config: Any) -> str | Policy:
    """Return the policy of layers of a configuration; the default's where none was kept."""
    return _of_config.get(id(config), "auto")
