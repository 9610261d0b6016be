"""What a `Policy` fixes holds, and changes nothing else."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from schedule_support import (
    MIXED,
    assert_plan_computes_attention,
    batch_of,
    forms,
    layer_of,
    scheduled,
)

from podrt.errors import UnsupportedConfigError
from podrt.gpu.nominal import H100
from podrt.kernels.hopper.presets import hopper_variant
from podrt.plan import Plan, keys_of, plan_bounds
from podrt.policy.policies import Policy, parse_policy
from podrt.policy.schedule import Schedule, Scheduler
from podrt.reference import check_plan

HOPPER, PORTABLE = Policy(family="hopper"), Policy(family="portable")
#: A policy, the one that it is compared with, and what differs of the tiling.
KNOBS: list[tuple[Policy, Policy, set[str]]] = [
    (Policy(serial=True), Policy(), {"fused_piece_keys", "taper_decode"}),
    (Policy(serial=False), Policy(), set()),
    (Policy(family="portable", ratio=(1, 3)), PORTABLE, set()),
    (
        Policy(family="portable", shape="small"),
        PORTABLE,
        {"prefill_rows", "prefill_kv_tile", "prefill_slots"},
    ),
    (Policy(family="portable", shape="large"), PORTABLE, set()),
    (Policy(family="hopper", decode_only_sms=24), HOPPER, set()),
    (Policy(family="hopper", prefill_only_sms=24), HOPPER, set()),
    (Policy(family="hopper", decode_only_sms=8, prefill_only_sms=24), HOPPER, set()),
    (Policy(family="hopper", decode_rows=8), HOPPER, set()),
    (Policy(family="hopper", decode_rows=16), HOPPER, {"decode_rows"}),
    (Policy(family="hopper", decode_rows=32), HOPPER, {"decode_rows", "prefill_kv_tile"}),
    (Policy(family="hopper", large_prefill_tile=True), HOPPER, set()),
    (Policy(family="hopper", large_prefill_tile=False), HOPPER, set()),
    (Policy(family="hopper", head_pairs=False), HOPPER, set()),
    (Policy(family="hopper", prefill_tile_keys=96), HOPPER, {"prefill_kv_tile"}),
    (Policy(family="hopper", prefill_tile_keys=64, prefill_ring=3), HOPPER, {"prefill_kv_tile"}),
    (Policy(family="hopper", decode_ring=3), HOPPER, set()),
    (Policy(family="portable", prefill_tile_keys=32), PORTABLE, {"prefill_kv_tile"}),
    (Policy(family="portable", prefill_ring=2), PORTABLE, set()),
    (Policy(family="portable", decode_ring=2), PORTABLE, set()),
    (Policy(limit_splits=True), Policy(), set()),
    (Policy(limit_splits=False), Policy(), {"prefill_waves"}),
    (Policy(family="portable", limit_splits=False), PORTABLE, {"prefill_waves"}),
    (Policy(decode_piece_keys=1024), Policy(), {"decode_piece_keys", "fused_piece_keys"}),
    (
        Policy(decode_piece_keys=256),
        Policy(),
        {"decode_piece_keys", "fused_piece_keys", "min_decode_keys"},
    ),
    (Policy(taper_decode=True), Policy(), set()),
    (Policy(taper_decode=False), Policy(), {"taper_decode"}),
    (Policy(family="portable", taper_decode=True), PORTABLE, {"taper_decode"}),
    (Policy(prefill_order="head"), Policy(), {"key_sharing"}),
    (Policy(prefill_order="length"), Policy(), {"key_sharing"}),
    (Policy(max_partial_bytes=2**20), Policy(), {"max_partial_rows"}),
    (Policy(max_partial_bytes=0), Policy(), {"max_partial_rows"}),
]
IDS = [repr(policy) for policy, _, _ in KNOBS]
#: Which fields are for kernels rather than for plans.
OF_VARIANTS = {
    "serial",
    "shape",
    "decode_rows",
    "large_prefill_tile",
    "head_pairs",
    "prefill_tile_keys",
    "prefill_ring",
    "decode_ring",
}
OF_SHARES = {"ratio", "decode_only_sms", "prefill_only_sms", "serial"}


def same_items(plan: Plan, other: Plan) -> bool:
    sides = ("prefill", "decode")
    return all(np.array_equal(getattr(plan, side), getattr(other, side)) for side in sides)


def shares(plan: Plan) -> tuple[int, ...]:
    sms = plan.decode_only_ctas, plan.prefill_only_ctas
    return *sms, plan.prefill_share, plan.decode_share


def fixed_in(policy: Policy) -> set[str]:
    fixed = {name for name, value in asdict(policy).items() if value is not None}
    return fixed - {"family"}


@pytest.mark.parametrize(("policy", "usual", "changed"), KNOBS, ids=IDS)
def test_a_knob_changes_what_it_says_and_nothing_else(
    policy: Policy, usual: Policy, changed: set[str]
) -> None:
    before, after = scheduled(*MIXED, usual), scheduled(*MIXED, policy)
    tilings = asdict(before.tiling), asdict(after.tiling)
    assert {name for name in tilings[0] if tilings[0][name] != tilings[1][name]} == changed
    if not changed:
        assert same_items(before.plan, after.plan)
        assert before.plan.prefill_runs == after.plan.prefill_runs
    if not fixed_in(policy) & OF_VARIANTS:
        assert (before.variants, before.base) == (after.variants, after.base)
    if not changed and not fixed_in(policy) & OF_SHARES:
        assert shares(before.plan) == shares(after.plan)


@pytest.mark.parametrize("policy", [policy for policy, _, _ in KNOBS], ids=IDS)
def test_no_knob_changes_the_result(policy: Policy) -> None:
    q_lens, kv_lens = [1, 140, 0, 7, 2, 1], [1900, 2100, 12, 7, 0, 300]
    result = scheduled(q_lens, kv_lens, policy, layer=layer_of(num_kv_heads=2))
    assert_plan_computes_attention(result.plan, batch_of(q_lens, kv_lens))


@pytest.mark.parametrize("policy", [policy for policy, _, _ in KNOBS], ids=IDS)
def test_plans_are_complete_and_within_what_is_reserved(policy: Policy) -> None:
    rng = np.random.default_rng(9)
    layer = layer_of()
    scheduler = Scheduler(layer, H100, policy)
    rows = scheduler.decode_rows_for(1)
    bounds = plan_bounds(
        scheduler.tiling(rows),
        num_kv_heads=8,
        group=4,
        max_requests=12,
        max_tokens=4000,
        max_kv_len=20_000,
    )
    known = set(scheduler.variants(rows))
    for _ in range(4):
        q_lens = rng.choice([0, 1, 1, 1, 2, 4, 700], 12).tolist()
        q_lens = q_lens if sum(q_lens) <= 4000 else [1] * 12
        kv_lens = [int(rng.integers(q_len, 20_001)) for q_len in q_lens]
        batch = batch_of(q_lens, kv_lens)
        result = scheduler.schedule(batch, decode_rows=rows)
        plan = result.plan
        check_plan(plan, batch)
        assert len(plan.prefill) + len(plan.decode) <= bounds.items
        assert (plan.partial_rows, plan.num_merges) <= (bounds.partial_rows, bounds.merges)
        assert set(result.variants) <= known
    assert {*scheduler.captured(rows), *scheduler.captured(rows, decodes_only=True)} <= known


def long_prefill(policy: Policy) -> Schedule:
    """One in which decode is too little to be worth hiding."""
    return scheduled([16384] + [1] * 8, [16384] * 9, policy)


def test_launches() -> None:
    for policy in (Policy(), HOPPER, Policy(serial=True)):
        assert forms(long_prefill(policy)) == ["prefill", "decode"]
    for policy in (
        Policy(serial=False),
        Policy(family="hopper", decode_only_sms=0),
        Policy(family="hopper", prefill_only_sms=0),
        Policy(family="hopper", large_prefill_tile=False),  # there is nothing to gain then
    ):
        assert forms(long_prefill(policy)) == ["pod"]


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ({"decode_only_sms": 24}, (24, 0)),
        ({"prefill_only_sms": 24}, (0, 24)),
        ({"decode_only_sms": 8, "prefill_only_sms": 24}, (8, 24)),
        ({"decode_only_sms": 0}, (0, 0)),
        ({"prefill_only_sms": 0}, (0, 0)),
    ],
)
def test_sms_of_one_side(fixed: dict[str, Any], expected: tuple[int, int]) -> None:
    for batch in (MIXED, ([512] + [1] * 64, [4096] * 65), ([64, 1], [8192, 100])):
        plan = scheduled(*batch, Policy(family="hopper", **fixed)).plan
        assert (plan.decode_only_ctas, plan.prefill_only_ctas) == expected


def test_ratio() -> None:
    plan = scheduled(*MIXED, Policy(family="portable", ratio=(5, 3))).plan
    assert (plan.prefill_share, plan.decode_share) == (5, 3)


@pytest.mark.parametrize("rows", [8, 16, 32])
def test_decode_rows_hold_for_every_batch(rows: int) -> None:
    policy = Policy(family="hopper", decode_rows=rows)
    for q_lens in ([1] * 10, [1, 512], [3] * 10, [8] * 10, [0]):
        result = scheduled(q_lens, policy=policy)
        assert result.base == hopper_variant("pod", "bfloat16", 128, decode_rows=rows)
        assert result.plan.decode_rows == rows
    # A token of more rows than the tile has several tiles.
    q_lens, layer = [1, 1, 300], layer_of(num_kv_heads=2, group=71)
    check_plan(scheduled(q_lens, policy=policy, layer=layer).plan, batch_of(q_lens, [2048] * 3))


def test_large_heads_have_small_decode_tiles() -> None:
    layer = layer_of(head_dim=256, group=32)
    assert scheduled([1] * 10, layer=layer).plan.decode_rows == 16
    with pytest.raises(UnsupportedConfigError, match="decode_rows=32: with head_dim=256 allowed"):
        scheduled([1], layer=layer, policy=Policy(family="hopper", decode_rows=32))


def test_decode_rows_are_what_is_reserved_or_refused() -> None:
    scheduler = Scheduler(layer_of(), H100, Policy(family="hopper", decode_rows=16))
    assert [scheduler.decode_rows_for(tokens) for tokens in (1, 4)] == [16, 16]
    with pytest.raises(UnsupportedConfigError, match=r"max_decode_tokens=5: .* hold at most 4;"):
        scheduler.decode_rows_for(5)
    with pytest.raises(UnsupportedConfigError, match=r"fix decode_rows=32 .* leave them at None$"):
        scheduler.decode_rows_for(8)
    with pytest.raises(UnsupportedConfigError, match=r"hold at most 4; leave them at None$"):
        scheduler.decode_rows_for(1000)
    wide = Scheduler(layer_of(group=71), H100, Policy(family="hopper", decode_rows=16))
    assert wide.decode_rows_for(1) == 16


def test_large_prefill_tile() -> None:
    for large, keys in ((True, 176), (False, 128)):
        for serial in (None, True):
            policy = Policy(family="hopper", large_prefill_tile=large, serial=serial)
            for batch in (([512], [4096]), ([2048], [16384])):
                (variant,) = scheduled(*batch, policy).variants
                assert variant == hopper_variant("prefill", "bfloat16", 128, large_tile=large)
                assert variant.kv_tile == keys  # type: ignore[union-attr]
            captured = Scheduler(layer_of(), H100, policy).captured(8)
            assert {v.kv_tile for v in captured if v.form == "prefill"} <= {keys}  # type: ignore[union-attr]
    small = layer_of(head_dim=64)
    assert scheduled([512], layer=small, policy=Policy(family="hopper", large_prefill_tile=False))
    with pytest.raises(UnsupportedConfigError, match="large_prefill_tile=True: head_dim=64 has no"):
        scheduled([512], layer=small, policy=Policy(family="hopper", large_prefill_tile=True))
    capped = replace(layer_of(), logits_soft_cap=30.0)
    (variant,) = scheduled([512], [4096], layer=capped, policy="hopper").variants
    assert variant.kv_tile == 128  # type: ignore[union-attr]
    with pytest.raises(UnsupportedConfigError, match="head_dim=128 with logits_soft_cap has no"):
        scheduled([512], layer=capped, policy=Policy(family="hopper", large_prefill_tile=True))


def head_pairs_of(policy: Policy | str = "auto", **layer: Any) -> dict[tuple[str, int], bool]:
    """Return whether heads are in pairs, by form and rows of a decode tile."""
    scheduler = Scheduler(replace(layer_of(16, head_dim=96), **layer), H100, parse_policy(policy))
    variants = (
        scheduler.captured(rows, decodes_only=alone)[0] for rows in (8, 16, 32) for alone in (0, 1)
    )
    return {(v.form, v.decode_rows): v.head_pairs for v in variants}  # type: ignore[union-attr]


def test_head_pairs() -> None:
    pairs = {(form, rows): rows < 32 for form in ("pod", "decode") for rows in (8, 16, 32)}
    assert head_pairs_of() == head_pairs_of("hopper") == pairs
    assert head_pairs_of(Policy(family="hopper", head_pairs=True)) == pairs
    for policy in (Policy(family="hopper", head_pairs=False), Policy(head_pairs=False)):
        assert not any(head_pairs_of(policy).values())


@pytest.mark.parametrize(
    "layer",
    [
        {"num_qo_heads": 12, "num_kv_heads": 3},
        {"kv_layout": "HND"},
        {"page_size": 4},
        {"head_dim": 128},
    ],
    ids=str,
)
def test_layers_without_head_pairs(layer: dict[str, Any]) -> None:
    assert not any(head_pairs_of(**layer).values())
    (field, value), *_ = reversed(layer.items())
    with pytest.raises(UnsupportedConfigError, match=f"head_pairs=True: .*{field}={value!r}"):
        head_pairs_of(Policy(family="hopper", head_pairs=True), **layer)


@pytest.mark.parametrize("policy", ["hopper", "serial", Policy(deterministic=True)], ids=str)
def test_kernels_for_heads_one_by_one_are_at_hand_beside_those_for_pairs(policy: Any) -> None:
    """Which of them runs, tensors decide, and a capture may be the first to know."""
    scheduler = Scheduler(layer_of(16, head_dim=96), H100, parse_policy(policy))
    variants = scheduler.variants(8)
    assert len(set(variants)) == len(variants)
    for variant in scheduler.captured(8) + scheduler.captured(8, decodes_only=True):
        found = [v for v in variants if (v.form, v.spec) == (variant.form, variant.spec)]
        assert {v.head_pairs for v in found} == {False, variant.form != "prefill"}  # type: ignore[union-attr]


def test_plans_of_pairs_fill_the_lanes_with_half_as_many_units() -> None:
    one, pair = (
        scheduled(
            [1] * 8,
            [16384] * 8,
            Policy(family="hopper", head_pairs=pairs),
            layer=layer_of(head_dim=96),
        )
        for pairs in (False, True)
    )
    assert pair.tiling.decode_slots == 2 * one.tiling.decode_slots
    assert len(pair.plan.decode) == 2 * len(one.plan.decode)
    assert pair.plan.decode_rows == one.plan.decode_rows == 8


def test_tiles_and_rings() -> None:
    fixed: dict[str, int] = {"prefill_tile_keys": 64, "prefill_ring": 3, "decode_ring": 2}
    hopper = Scheduler(layer_of(), H100, Policy(family="hopper", **fixed))  # type: ignore[arg-type]
    pod, prefill, decode = hopper.variants(8)
    assert {(v.kv_tile, v.stages) for v in (pod, prefill)} == {(64, 3)}  # type: ignore[union-attr]
    assert {v.decode_slots for v in (pod, decode)} == {2}  # type: ignore[union-attr]
    assert {v.next_slots for v in (pod, decode)} == {2}  # type: ignore[union-attr]
    assert (decode, prefill) == (  # what a kernel has not stays as it is
        replace(hopper_variant("decode", "bfloat16", 128), decode_slots=2),
        replace(hopper_variant("prefill", "bfloat16", 128), kv_tile=64, stages=3),
    )
    portable = Scheduler(layer_of(), H100, Policy(family="portable", **fixed))  # type: ignore[arg-type]
    for variant in portable.variants(16):
        tiles = variant.prefill.kv_tile, variant.prefill.kv_slots, variant.decode.kv_slots  # type: ignore[union-attr]
        assert tiles == (64, 3, 2)


@pytest.mark.parametrize(
    ("fixed", "why"),
    [
        ({"prefill_tile_keys": 176}, "shared memory in a CTA"),
        ({"prefill_tile_keys": 32}, "kv_tile=32: allowed are 48, 64, "),
        ({"prefill_ring": 8}, "shared memory in a CTA"),
        ({"prefill_tile_keys": 64, "decode_rows": 32}, "room for 1 slots of decode"),
    ],
)
def test_tiles_without_room_are_refused(fixed: dict[str, Any], why: str) -> None:
    layer = layer_of(head_dim=64 if "decode_rows" in fixed else 128)
    with pytest.raises(UnsupportedConfigError, match=why):
        scheduled(*MIXED, Policy(family="hopper", **fixed), layer=layer)


def test_tiles_go_with_a_family() -> None:
    for name, value in (("prefill_tile_keys", 64), ("prefill_ring", 3), ("decode_ring", 2)):
        with pytest.raises(UnsupportedConfigError, match=f"{name}={value}: is another thing in"):
            Policy(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(UnsupportedConfigError, match="leave one at None"):
        Policy(family="hopper", large_prefill_tile=True, prefill_tile_keys=64)
    with pytest.raises(ValueError, match="prefill_tile_keys=72: must be a multiple of 16"):
        Policy(family="hopper", prefill_tile_keys=72)
    with pytest.raises(ValueError, match="decode_ring=1: must be from 2 to 64"):
        Policy(family="hopper", decode_ring=1)


@pytest.mark.parametrize("keys", [128, 640, 2048, 16384])
@pytest.mark.parametrize("family", ["portable", "hopper"])
def test_no_piece_of_a_decode_is_longer(keys: int, family: Any) -> None:
    for decodes, prefill in ((3, []), (3, [512]), (120, []), (120, [512])):
        q_lens = prefill + [1] * decodes
        plans = [
            scheduled(q_lens, [16000] * len(q_lens), Policy(family=family, **fixed)).plan
            for fixed in ({}, {"decode_piece_keys": keys, "max_partial_bytes": 2**31})
        ]
        usual, fixed = (keys_of(plan.decode) for plan in plans)
        assert fixed.max() <= keys
        assert fixed.sum() == usual.sum()


def test_partial_results_fit_the_memory_that_is_fixed() -> None:
    q_lens = [300] + [1] * 10
    for nbytes in (0, 2**20, 2**22, 2**26):
        result = scheduled(q_lens, [16000] * 11, Policy(max_partial_bytes=nbytes))
        assert result.plan.partial_rows * 8 * 128 * 4 <= nbytes
        assert (result.plan.num_merges > 0) == (nbytes > 0)


def test_order_of_prefill() -> None:
    batch = [2048, 1500] + [1] * 64, [16384] * 66
    head, length = (scheduled(*batch, Policy(prefill_order=o)).plan for o in ("head", "length"))  # type: ignore[arg-type]
    items = head.prefill["request"].tolist()
    assert head.prefill_runs == (items.count(0), len(items))
    assert items == sorted(items)
    assert length.prefill_runs == ()
    assert (np.diff(keys_of(length.prefill)) <= 0).all()
    assert sorted(head.prefill.tolist()) == sorted(length.prefill.tolist())


def test_order_of_prefill_by_head_even_where_keys_stay_in_l2() -> None:
    batch = [600] + [1] * 4, [600] * 5
    plans = [scheduled(*batch, Policy(prefill_order=order)).plan for order in (None, "head")]
    assert [plan.prefill_runs for plan in plans] == [(), (len(plans[1].prefill),)]


def test_taper() -> None:
    batch = [2048] + [1] * 100, [4096] + [16384] * 100
    for family in ("portable", "hopper"):
        lengths = [
            set(
                keys_of(scheduled(*batch, Policy(family=family, taper_decode=taper)).plan.decode)  # type: ignore[arg-type]
            )
            for taper in (True, False)
        ]
        assert len(lengths[0]) > len(lengths[1])


@pytest.mark.parametrize("family", ["portable", "hopper"])
def test_prefill_splits_without_limit(family: Any) -> None:
    batch = [200] + [1] * 200, [16384] + [4096] * 200
    limited, free = (
        len(scheduled(*batch, Policy(family=family, limit_splits=limit)).plan.prefill)
        for limit in (True, False)
    )
    assert free > limited
