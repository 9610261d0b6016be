"""Axes of a sweep: values, combinations, and why some of them cannot be."""

from __future__ import annotations

import pytest
from sweep_support import combination

from podrt.bench.sweep.axes import (
    AXES,
    combination_of,
    combinations,
    parse_axes,
    parse_axis,
    read_values,
    sample,
)
from podrt.bench.sweep.definition import definition_names, parse_definition, read_definition
from podrt.policy.policies import Policy


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("decode_only_sms=0,8, 16", "decode_only_sms", (0, 8, 16)),
        ("family=hopper", "family", ("hopper",)),
        ("ratio=1:3,2:1", "ratio", ((1, 3), (2, 1))),
        ("taper_decode=true,false,auto", "taper_decode", (True, False, None)),
        ("ctas_per_sm=2,4,2", "ctas_per_sm", ("large", "small")),
    ],
)
def test_values(text, name, values):
    assert parse_axis(text) == (name, values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("decode_sms=1", "axis='decode_sms': there is none of that name; try decode_"),
        ("nonsense!=1", "try family, serial"),
        ("decode_only_sms", "expected NAME=VALUE"),
        ("decode_only_sms=", "expected NAME=VALUE"),
        ("decode_only_sms=1.5", "'1.5': expected a whole number, or 'auto'"),
        ("taper_decode=yes", "expected true or false"),
        ("ratio=1-3", "expected a ratio"),
        ("ctas_per_sm=3", "allowed are 2, 4"),
        ("family=hopper,foo", "axis family='foo': allowed are 'auto', 'portable', 'hopper'$"),
        ("shape=foo", "axis shape='foo': allowed are None, .*; None is written 'auto'"),
        ("prefill_order=foo", "axis prefill_order='foo': allowed are None, 'head', 'length'"),
        ("decode_rows=9", "axis decode_rows=9: allowed are None, 8, 16, 32"),
        ("ratio=0:1", "axis ratio=.*: each must be from 1 to 64"),
        ("decode_only_sms=4000", "must be from 0 to 1024, or None"),
        ("prefill_only_sms=4000", "must be from 0 to 1024, or None"),
        ("decode_piece_keys=200", "must be a multiple of 128"),
        ("prefill_tile_keys=17", "must be a multiple of 16"),
        ("prefill_ring=1", "must be from 2 to 64"),
        ("decode_ring=65", "must be from 2 to 64"),
        ("max_partial_bytes=9999999999", "must be from 0 to 2147483648"),
    ],
)
def test_what_is_no_axis_or_value_is_said(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_axis(text)


@pytest.mark.parametrize(
    "text",
    [
        "family=auto,portable,hopper",
        "shape=large,small,auto",
        "decode_rows=8,16,32",
        "ratio=64:1",
        "prefill_tile_keys=256",  # of which some kernels have no room
        "serial=true,false",
        "large_prefill_tile=true",
        "head_pairs=true,false",
        "deterministic=true",
    ],
)
def test_values_that_some_policy_takes_are_for_combinations(text):
    assert len(parse_axis(text)[1]) == text.count(",") + 1


def test_an_axis_is_named_once():
    with pytest.raises(ValueError, match="name each axis once"):
        parse_axes(["family=hopper", "family=portable"])


def test_a_grid_leaves_out_what_policies_refuse_with_their_words():
    axes = {"family": ("hopper", "portable"), "decode_only_sms": (0, 8), "ratio": (None, (1, 2))}
    grid, skipped = combinations(axes)
    assert [each.name for each in grid] == [
        "hopper decode_only_sms=0",
        "hopper decode_only_sms=8",
    ]
    assert len(skipped) == 6
    assert all("is of the " in each.reason for each in skipped)


def test_names_and_plain_values_say_all_that_is_fixed():
    one = combination(family="portable", serial=False, ratio=(1, 3), shape="small")
    assert one.name == "portable serial=false ratio=1:3 shape=small"
    assert one.policy() == Policy(family="portable", serial=False, ratio=(1, 3), shape="small")
    assert combination_of(one.to_dict()) == one
    assert one.to_dict()["ratio"] == [1, 3]
    assert combination().name == "auto"
    assert one.over(Policy(family="portable", decode_ring=2)).decode_ring == 2


def test_every_axis_but_one_is_a_field_of_policy():
    fields = set(Policy.__dataclass_fields__)
    assert set(AXES) - fields == {"ctas_per_sm"}
    assert fields - set(AXES) == {"autotuned"}


def test_a_random_search_is_the_same_again_by_its_seed():
    grid = [combination(family="hopper", decode_only_sms=sms) for sms in range(50)]
    chosen = sample(grid, 10, seed=1)
    assert chosen == sample(grid, 10, seed=1) != sample(grid, 10, seed=2)
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen, key=grid.index)
    assert sample(grid, 99, seed=0) == grid


def test_shipped_definitions():
    assert "h100" in definition_names()
    shipped = read_definition("h100")
    assert len(shipped.cases) == 6
    assert len(shipped.combinations) >= 60
    assert all(case.is_hybrid for case in shipped.cases)


GOOD = {
    "batches": ["512@4096 + 4x4096"],
    "variants": [{"family": "hopper", "decode_rows": [8, 16]}],
}


def test_a_definition():
    found = parse_definition("mine", {**GOOD, "samples": 5, "heads": "16/2", "page_size": 0})
    assert [each.name for each in found.combinations] == [
        "hopper decode_rows=8",
        "hopper decode_rows=16",
    ]
    (case,) = found.cases
    assert (case.num_qo_heads, case.num_kv_heads, case.page_size) == (16, 2, None)
    assert found.samples == 5
    assert found.with_samples(3).samples == 3
    assert len(found.sampled(1, 0).combinations) == 1


def test_a_definition_of_a_suite():
    found = parse_definition(
        "mine", {"suite": "traces", "only": "#0", "variants": [{"serial": [True, False]}]}
    )
    assert found.cases
    assert all("#0" in case.name for case in found.cases)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch": []}, "unknown key"),
        ({"variants": []}, "has no"),
        ({"suite": "balanced"}, "batches or a suite"),
        ({"heads": "8"}, "heads='8': expected"),
        ({"samples": 0}, "samples=0"),
        ({"variants": [{"famly": "hopper"}]}, "try family"),
        ({"batches": ["512@"]}, "is not a part"),
    ],
)
def test_bad_definitions(changes, reason):
    with pytest.raises(ValueError, match=reason):
        parse_definition("mine", {**GOOD, **changes})


def test_an_unknown_definition(tmp_path):
    with pytest.raises(ValueError, match=r"no h10.toml here; allowed are .*h100"):
        read_definition("h10")
    path = tmp_path / "bad.toml"
    path.write_text("variants = 3\n")
    with pytest.raises(ValueError, match=r"bad.toml"):
        read_definition(str(path))


def test_auto_is_no_value_of_a_family_but_its_own():
    assert read_values("family", ["auto"]) == ("auto",)
