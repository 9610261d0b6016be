"""Names of policies."""

from __future__ import annotations

import re

import pytest

from podrt.errors import UnsupportedConfigError
from podrt.policy.policies import Policy, parse_policy

PORTABLE = Policy(family="portable")


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("auto", Policy()),
        ("serial", Policy(serial=True)),
        ("hopper", Policy(family="hopper")),
        ("hopper-serial", Policy(family="hopper", serial=True)),
        ("portable", PORTABLE),
        ("portable-serial", Policy(family="portable", serial=True)),
        # Only the portable family shares SMs by a ratio.
        ("proportional", PORTABLE),
        ("50:50", Policy(family="portable", ratio=(1, 1))),
        ("ctas=2", Policy(family="portable", shape="large")),
        ("ctas=4", Policy(family="portable", shape="small")),
        ("splits=vanilla", Policy(family="portable", limit_splits=False)),
        ("1:3", Policy(family="portable", ratio=(1, 3))),
        ("64:1", Policy(family="portable", ratio=(64, 1))),
    ],
)
def test_policies(text: str, policy: Policy) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text", ["", "Auto", "1", "1:", ":1", "0:1", "1:0", "65:1", "1:2:3", "-1:2", "1.5:1", "a:b"]
)
def test_bad_policy_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UnsupportedConfigError) as caught:
        parse_policy(text)
    assert str(caught.value).startswith(f"policy={text!r}: allowed are 'auto', 'serial'")
    assert "from 1 to 64" in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 1, (1, 2)])
def test_policy_of_another_type_is_refused(wrong: object) -> None:
    with pytest.raises(UnsupportedConfigError, match=re.escape(f"policy={wrong!r}")):
        parse_policy(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, 24, 1024])
def test_sms_of_one_side(number: int) -> None:
    decode, prefill = parse_policy(f"decode-only={number}"), parse_policy(f"prefill-only={number}")
    assert decode == Policy(family="hopper", decode_only_sms=number)
    assert prefill == Policy(family="hopper", decode_only_sms=0, prefill_only_sms=number)
