"""The former place of `podrt.policy.policies`."""

from __future__ import annotations

from podrt.policy.policies import Policy, parse_policy

__all__ = ["Policy", "parse_policy"]
