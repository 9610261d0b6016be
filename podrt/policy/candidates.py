"""The ways to run a hybrid batch that are weighed against each other: one stated grid a family."""

from __future__ import annotations

from dataclasses import replace

from podrt.policy.policies import Family, Policy, parse_policy
from podrt.policy.portable import RATIOS

#: SMs that take one side first, of the Hopper family's candidates.
DECODE_ONLY_SMS = (0, 4, 8, 16, 24, 32, 48)
PREFILL_ONLY_SMS = (8, 16, 32)

_NAMES: dict[str, tuple[str, ...]] = {
    "hopper": (
        "serial",
        *(f"decode-only={sms}" for sms in DECODE_ONLY_SMS),
        *(f"prefill-only={sms}" for sms in PREFILL_ONLY_SMS),
    ),
    "portable": ("portable-serial", *("{}:{}".format(*ratio) for ratio in RATIOS)),
}


def candidate_names(family: str) -> tuple[str, ...]:
    """Return the policies' names, launches apart first, of a kernel family."""
    return _NAMES[family]


def as_candidate(policy: Policy, name: str, family: Family) -> Policy:
    """Return the policy of a candidate, which keeps what a policy fixes of other things."""
    fixed = parse_policy(name)
    serial = bool(fixed.serial)
    return replace(
        policy,
        family=family,
        autotuned=False,
        serial=serial,
        ratio=fixed.ratio,
        decode_only_sms=fixed.decode_only_sms,
        prefill_only_sms=fixed.prefill_only_sms,
        taper_decode=None if serial else policy.taper_decode,
    )
