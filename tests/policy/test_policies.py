"""`Policy`, its checks, and names of policies."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from podrt.errors import UnsupportedConfigError
from podrt.policy.policies import Policy, parse_policy

PORTABLE = Policy(family="portable")


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("auto", Policy()),
        ("serial", Policy(serial=True)),
        ("hopper", Policy(family="hopper", serial=False)),
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


@pytest.mark.parametrize("wrong", [None, 1, (1, 2), [1, 2], {"family": "hopper"}, Policy])
def test_policy_of_another_type_is_refused(wrong: object) -> None:
    with pytest.raises(UnsupportedConfigError, match=re.escape(f"policy={wrong!r}")):
        parse_policy(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, 24, 1024])
def test_sms_of_one_side(number: int) -> None:
    decode, prefill = parse_policy(f"decode-only={number}"), parse_policy(f"prefill-only={number}")
    assert decode == Policy(family="hopper", decode_only_sms=number)
    assert prefill == Policy(family="hopper", prefill_only_sms=number)


def test_an_object_is_taken_as_it_is() -> None:
    policy = Policy(family="hopper", decode_rows=16)
    assert parse_policy(policy) is policy


def test_nothing_is_fixed_by_default_and_repr_shows_what_is() -> None:
    values = {field.name: field.default for field in fields(Policy)}
    assert values.pop("family") == "auto"
    assert values.pop("autotuned") is False
    assert values.pop("deterministic") is False
    assert set(values.values()) == {None}
    assert repr(Policy()) == "Policy()"
    fixed = Policy(family="portable", ratio=(1, 3), limit_splits=False)
    assert repr(fixed) == "Policy(family='portable', ratio=(1, 3), limit_splits=False)"


def test_every_field_is_described() -> None:
    assert Policy.__doc__
    parameters = Policy.__doc__.partition("Parameters")[2].partition("Raises")[0]
    for field in fields(Policy):
        assert re.search(rf"^    .*\b{field.name}\b.* : ", parameters, re.MULTILINE), field.name


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"family": "cuda"}, UnsupportedConfigError, "family='cuda': allowed are 'auto', 'portab"),
        ({"family": None}, UnsupportedConfigError, "family=None: allowed are 'auto'"),
        ({"serial": 1}, TypeError, "serial=1: expected True, False or None"),
        ({"limit_splits": "vanilla"}, TypeError, "limit_splits='vanilla': expected True, False"),
        ({"taper_decode": 0}, TypeError, "taper_decode=0: expected True, False or None"),
        ({"large_prefill_tile": 176}, TypeError, "large_prefill_tile=176: expected True, False"),
        ({"head_pairs": 2}, TypeError, "head_pairs=2: expected True, False or None"),
        ({"ratio": [1, 3]}, TypeError, "ratio=[1, 3]: expected a tuple of two ints"),
        ({"ratio": (1, 2, 3)}, TypeError, "ratio=(1, 2, 3): expected a tuple of two ints"),
        ({"ratio": (1, None)}, TypeError, "ratio=(1, None): expected a tuple of two ints"),
        ({"ratio": (1, 0.5)}, TypeError, "ratio=0.5: expected an int"),
        ({"ratio": (0, 1)}, ValueError, "ratio=(0, 1): each must be from 1 to 64"),
        ({"ratio": (1, 65)}, ValueError, "ratio=(1, 65): each must be from 1 to 64"),
        ({"shape": "medium"}, UnsupportedConfigError, "shape='medium': allowed are None, 'large'"),
        ({"decode_only_sms": -1}, ValueError, "decode_only_sms=-1: must be from 0 to 1024"),
        ({"prefill_only_sms": 1025}, ValueError, "prefill_only_sms=1025: must be from 0 to 1024"),
        ({"prefill_only_sms": 2.0}, TypeError, "prefill_only_sms=2.0: expected an int or None"),
        ({"autotuned": None}, TypeError, "autotuned=None: expected True or False"),
        (
            {"autotuned": True, "serial": False},
            UnsupportedConfigError,
            "serial=False: is what autotuned=True decides",
        ),
        (
            {"autotuned": True, "family": "hopper", "decode_only_sms": 4},
            UnsupportedConfigError,
            "decode_only_sms=4: is what autotuned=True decides",
        ),
        ({"decode_rows": 24}, UnsupportedConfigError, "decode_rows=24: allowed are None, 8, 16"),
        ({"decode_rows": 8.0}, TypeError, "decode_rows=8.0: expected an int or None"),
        ({"decode_rows": True}, TypeError, "decode_rows=True: expected an int or None"),
        ({"decode_piece_keys": 64}, ValueError, "decode_piece_keys=64: must be from 128 to"),
        (
            {"decode_piece_keys": 200},
            ValueError,
            "decode_piece_keys=200: must be a multiple of 128",
        ),
        ({"prefill_order": "tile"}, UnsupportedConfigError, "prefill_order='tile': allowed are"),
        ({"prefill_order": ["head"]}, UnsupportedConfigError, "prefill_order=['head']: allowed"),
        ({"max_partial_bytes": -1}, ValueError, "max_partial_bytes=-1: must be from 0 to"),
        ({"max_partial_bytes": 2**31 + 1}, ValueError, "max_partial_bytes=2147483649: must be"),
    ],
)
def test_a_field_out_of_its_range_is_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Policy(**given)


OF_FAMILY = {
    "portable": {"ratio": (1, 3), "shape": "small"},
    "hopper": {
        "decode_only_sms": 0,
        "prefill_only_sms": 0,
        "decode_rows": 8,
        "large_prefill_tile": False,
        "head_pairs": True,
    },
}


@pytest.mark.parametrize("given", ["auto", "portable", "hopper"])
def test_fields_of_one_family_need_it(given: Any) -> None:
    for family, values in OF_FAMILY.items():
        for name, value in values.items():
            fixed: dict[str, Any] = {name: value}
            if family == given:
                assert getattr(Policy(family=given, **fixed), name) == value
                continue
            message = (
                f"{name}={value!r}: is of the {family.capitalize()} family, but family='{given}'"
            )
            with pytest.raises(UnsupportedConfigError, match=re.escape(message)):
                Policy(family=given, **fixed)


@pytest.mark.parametrize(
    "fused",
    [
        Policy(family="portable", ratio=(1, 1)),
        Policy(family="hopper", decode_only_sms=0),
        Policy(family="hopper", prefill_only_sms=8),
        Policy(taper_decode=False),
    ],
    ids=repr,
)
def test_what_shares_out_a_fused_launch_is_refused_beside_serial(fused: Policy) -> None:
    assert replace(fused, serial=False).serial is False
    with pytest.raises(UnsupportedConfigError, match="is of fused launches, but serial=True"):
        replace(fused, serial=True)


def test_numbers_of_numpy_become_ints_and_policies_can_be_compared() -> None:
    number = np.int64
    given = Policy(family="hopper", decode_rows=number(16), decode_only_sms=number(4))  # type: ignore[arg-type]
    assert given == Policy(family="hopper", decode_rows=16, decode_only_sms=4)
    assert hash(given) == hash(Policy(family="hopper", decode_rows=16, decode_only_sms=4))
    assert [type(given.decode_rows), type(given.decode_only_sms)] == [int, int]
    assert Policy(family="portable", ratio=(number(1), number(2))).ratio == (1, 2)  # type: ignore[arg-type]
