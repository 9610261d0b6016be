"""Which variant serves a batch."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from podrt.errors import UnsupportedConfigError
from podrt.kernels.families import Variant
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import Plan, make_plan
from podrt.policy.dispatch import (
    RATIOS,
    Policy,
    base_variant,
    launches,
    nearest_ratio,
    parse_policy,
    share_sms,
    tiling_of,
)
from podrt.policy.sm_allocation import shares_of_sms
from podrt.spec.attention import Layer, make_layer
from podrt.spec.batch import HybridBatch
from podrt.spec.types import DType

NUM_SMS = 132
BASE = variant("pod", "sm_90a", "bfloat16", 128)
HOPPER = hopper_variant("pod", "bfloat16", 128)
PORTABLE = Policy(family="portable")


def layer_of(
    page_size: int | None = None,
    causal: bool = True,
    *,
    group: int = 4,
    head_dim: int = 128,
    dtype: DType = "bfloat16",
) -> Layer:
    return make_layer(8 * group, 8, head_dim, page_size, "NHD", dtype, causal, None)


def batch_of(q_lens: list[int], kv_lens: list[int]) -> HybridBatch:
    return HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )


def plan_of(q_lens: list[int], kv_lens: list[int]) -> Plan:
    batch = batch_of(q_lens, kv_lens)
    return make_plan(batch, tiling_of(BASE, NUM_SMS, 4), num_kv_heads=8, group=4, causal=True)


def chosen_for(
    q_lens: list[int],
    layer: Layer,
    policy: str = "auto",
    *,
    arch: str = "sm_90a",
) -> Variant:
    batch = batch_of(q_lens, [2048] * len(q_lens))
    return base_variant(batch, layer, parse_policy(policy), arch=arch)


def forms(configs: tuple[Variant, ...]) -> list[str]:
    return [config.form for config in configs]


def ratio_of(plan: Plan, policy: str) -> tuple[int, int]:
    shared = share_sms(plan, BASE, parse_policy(policy), num_sms=132, memory_gbs=3352.0)
    return shared.prefill_share, shared.decode_share


MIXED = plan_of([4096] + [1] * 64, [4096] + [2048] * 64)


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


@pytest.mark.parametrize(
    ("prefill_ctas", "decode_ctas", "ratio"),
    [
        (100, 100, (1, 1)),
        (130, 100, (1, 1)),
        (150, 100, (2, 1)),
        (100, 310, (1, 4)),
        (10_000, 1, (8, 1)),
        (1, 10_000, (1, 8)),
        (3, 0.25, (8, 1)),
    ],
)
def test_nearest_ratio_on_a_log_scale(
    prefill_ctas: float, decode_ctas: float, ratio: tuple[int, int]
) -> None:
    assert nearest_ratio(prefill_ctas, decode_ctas) == ratio


def test_every_ratio_is_its_own_nearest() -> None:
    assert [nearest_ratio(*ratio) for ratio in RATIOS] == list(RATIOS)


def test_mixed_batch_is_one_fused_launch_by_amount_of_work() -> None:
    assert launches(BASE, MIXED, parse_policy("auto")) == (BASE,)
    assert launches(BASE, MIXED, parse_policy("proportional")) == (BASE,)
    wanted = math.log2(MIXED.num_prefill_units / (MIXED.num_decode_units / BASE.warps))
    prefill, decode = ratio_of(MIXED, "proportional")
    assert abs(math.log2(prefill / decode) - wanted) <= 0.5


def test_explicit_ratio_is_taken_as_it_is() -> None:
    assert ratio_of(MIXED, "3:5") == (3, 5)
    assert ratio_of(MIXED, "50:50") == (1, 1)


def test_serial_is_one_launch_per_side() -> None:
    both = launches(BASE, MIXED, parse_policy("serial"))
    assert forms(both) == ["prefill", "decode"]
    assert {config.prefill for config in both} == {BASE.prefill}


@pytest.mark.parametrize("policy", ["auto", "serial", "1:3"])
def test_a_side_that_is_alone_gets_its_own_kernel(policy: str) -> None:
    prefill, decode = plan_of([512], [512]), plan_of([1, 1], [512, 7])
    assert forms(launches(BASE, prefill, parse_policy(policy))) == ["prefill"]
    assert forms(launches(BASE, decode, parse_policy(policy))) == ["decode"]


def test_lone_side_needs_no_ratio() -> None:
    for plan in (plan_of([1, 1], [512, 7]), plan_of([512], [512]), plan_of([0], [5])):
        assert ratio_of(plan, "portable") == (1, 1)


@pytest.mark.parametrize("policy", ["auto", "serial"])
def test_no_work_is_no_launch(policy: str) -> None:
    assert launches(BASE, plan_of([0, 0], [5, 0]), parse_policy(policy)) == ()


@pytest.mark.parametrize(
    "q_lens",
    [[9 * 32], [8 * 32], [4 * 32 + 1, 4 * 32], [5], [5, 1, 1], [1] * 100, [0], [4] * 1000],
)
def test_portable_tiles_are_large_ones_whatever_the_batch(q_lens: list[int]) -> None:
    chosen = chosen_for(q_lens, layer_of(), "portable")
    assert chosen == variant("pod", "sm_90a", "bfloat16", 128, shape="large")


def test_variant_follows_the_layer() -> None:
    batch = HybridBatch.from_block_table(
        np.array([0, 1], np.int32),
        np.array([5], np.int32),
        shape=(1, 1),
        row_stride=1,
        page_size=32,
    )
    for arch, family in (("sm_89", "portable"), ("sm_90a", "hopper")):
        layer = layer_of(32, causal=False, head_dim=64, dtype="float16")
        chosen = base_variant(batch, layer, Policy(), arch=arch)
        assert (chosen.family, chosen.arch, chosen.form) == (family, arch, "pod")
        assert (chosen.dtype, chosen.head_dim) == ("float16", 64)
        assert (chosen.page_size, chosen.causal) == (32, False)


@pytest.mark.parametrize(
    ("layer", "obstacle"),
    [
        (layer_of(head_dim=256), "head_dim=256"),
        (layer_of(24), "page_size=24"),
        (layer_of(1), "page_size=1"),
        (layer_of(group=129), "129 query heads"),
    ],
    ids=["head_dim", "page of no copies", "page of one token", "group beyond a tile"],
)
def test_layers_that_hopper_cannot_serve_are_portable(layer: Layer, obstacle: str) -> None:
    assert chosen_for([1], layer).family == "portable"
    with pytest.raises(
        UnsupportedConfigError, match=f"cannot serve this layer: {obstacle}"
    ) as caught:
        chosen_for([1], layer, "hopper")
    assert '"portable"' in str(caught.value)


@pytest.mark.parametrize("arch", ["sm_80", "sm_100", "sm_120"])
def test_other_gpus_are_portable(arch: str) -> None:
    assert chosen_for([1], layer_of(), arch=arch).family == "portable"
    with pytest.raises(UnsupportedConfigError, match=f"sm_90a GPU; this one is {arch}"):
        chosen_for([1], layer_of(), "hopper-serial", arch=arch)


@pytest.mark.parametrize("policy", ["portable", "portable-serial", "proportional", "50:50", "1:3"])
def test_portable_policies_hold_on_hopper(policy: str) -> None:
    assert chosen_for([1], layer_of(), policy).family == "portable"


@pytest.mark.parametrize(
    ("group", "q_lens", "decode_rows"),
    [
        (1, [1] * 10, 8),
        (8, [1] * 10, 8),
        (9, [1] * 10, 16),
        (17, [1] * 10, 32),
        (71, [1] * 10, 32),  # more than one tile to a token
        (4, [512, 1, 1], 8),  # prefills do not count
        (4, [512], 8),
        (4, [0, 0], 8),
        (4, [2] * 10, 8),
        (4, [3] * 10, 16),
        (4, [5] * 10, 32),
        (4, [1] * 9 + [3], 8),  # few enough to be taken as prefills
        (4, [1] * 8 + [3] * 2, 16),
    ],
)
def test_decode_tiles_hold_nearly_all_decodes_whole(
    group: int, q_lens: list[int], decode_rows: int
) -> None:
    chosen = chosen_for(q_lens, layer_of(group=group))
    assert chosen == hopper_variant("pod", "bfloat16", 128, decode_rows=decode_rows)


def test_hopper_launches_are_fused_unless_a_side_is_alone() -> None:
    assert launches(HOPPER, MIXED, Policy()) == (HOPPER,)
    serial = launches(HOPPER, MIXED, parse_policy("hopper-serial"))
    assert serial == tuple(hopper_variant(form, "bfloat16", 128) for form in ("prefill", "decode"))
    assert launches(HOPPER, plan_of([512], [512]), Policy()) == serial[:1]
    assert launches(HOPPER, plan_of([1], [512]), Policy()) == serial[1:]
    assert launches(HOPPER, plan_of([0], [5]), Policy()) == ()


def long_prefill_plan(decodes: int, base: HopperConfig = HOPPER) -> Plan:
    q_lens, kv_lens = [16384] + [1] * decodes, [16384] + [16384] * decodes
    batch = HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )
    return make_plan(batch, tiling_of(base, NUM_SMS, 4), num_kv_heads=8, group=4, causal=True)


def test_long_prefill_and_little_decode_are_launched_apart() -> None:
    plan = long_prefill_plan(8)
    prefill, decode = launches(HOPPER, plan, Policy())
    assert (prefill.form, decode.form) == ("prefill", "decode")
    assert prefill.kv_tile == 176  # type: ignore[union-attr]
    assert launches(HOPPER, plan, parse_policy("hopper")) == (HOPPER,)
    assert launches(HOPPER, long_prefill_plan(16), Policy()) == (HOPPER,)


def test_tiles_that_are_as_large_in_a_fused_launch_are_no_reason_to_part() -> None:
    base = hopper_variant("pod", "bfloat16", 64)
    assert launches(base, long_prefill_plan(8, base), Policy()) == (base,)


def test_prefill_alone_gets_the_tile_for_its_units() -> None:
    (short,) = launches(HOPPER, plan_of([512], [4096]), Policy())
    (long,) = launches(HOPPER, plan_of([2048], [16384]), Policy())
    assert (short.kv_tile, long.kv_tile) == (128, 176)  # type: ignore[union-attr]


def test_lone_hopper_side_keeps_what_the_plan_was_made_for() -> None:
    base = hopper_variant("pod", "float16", 64, decode_rows=32, page_size=64, causal=False)
    prefill, decode = launches(base, MIXED, Policy(serial=True))
    for side in (prefill, decode):
        assert (side.dtype, side.head_dim, side.page_size) == ("float16", 64, 64)
        assert side.causal is False
    tilings = [tiling_of(config, NUM_SMS, 4) for config in (base, prefill, decode)]
    assert tilings[1].prefill_rows == tilings[0].prefill_rows
    assert tilings[2].decode_rows == tilings[0].decode_rows


@pytest.mark.parametrize(("group", "rows"), [(1, 128), (3, 126), (16, 128), (71, 71), (128, 128)])
def test_hopper_prefill_tiles_are_whole_tokens(group: int, rows: int) -> None:
    tiling = tiling_of(HOPPER, 10, group)
    assert (tiling.prefill_rows, tiling.decode_rows) == (rows, HOPPER.decode_rows)
    # Splits begin where a tile does, and a bulk copy of up to 64 keys.
    assert [tiling.prefill_kv_tile % keys for keys in (HOPPER.kv_tile, 64)] == [0, 0]
    assert (tiling.prefill_slots, tiling.decode_slots) == (10, 20)


def test_tiling_describes_the_variant_on_the_gpu() -> None:
    tiling = tiling_of(BASE, 10, 4)
    assert (tiling.prefill_rows, tiling.decode_rows) == (BASE.prefill.rows, 16)
    assert (tiling.prefill_kv_tile, tiling.decode_kv_tile) == (
        BASE.prefill.kv_tile,
        BASE.decode.kv_tile,
    )
    assert tiling.prefill_slots == 10 * BASE.ctas_per_sm
    assert tiling.decode_slots == 10 * BASE.ctas_per_sm * BASE.warps


def test_policies_that_fix_the_shape() -> None:
    for policy, shape in (("ctas=2", "large"), ("ctas=4", "small")):
        chosen = chosen_for([1, 5], layer_of(), policy)
        assert chosen == variant("pod", "sm_90a", "bfloat16", 128, shape=shape)


@pytest.mark.parametrize("number", [0, 24, 1024])
def test_decode_only_sms_are_taken_as_they_are(number: int) -> None:
    policy = parse_policy(f"decode-only={number}")
    assert policy == Policy(family="hopper", decode_only_sms=number)
    shared = share_sms(MIXED, HOPPER, policy, num_sms=132, memory_gbs=3352.0)
    assert shared.decode_only_ctas == number


def test_prefill_only_sms_are_taken_as_they_are() -> None:
    policy = parse_policy("prefill-only=16")
    assert policy == Policy(family="hopper", decode_only_sms=0, prefill_only_sms=16)
    shared = share_sms(MIXED, HOPPER, policy, num_sms=132, memory_gbs=3352.0)
    assert (shared.decode_only_ctas, shared.prefill_only_ctas) == (0, 16)


def test_sms_are_shared_by_the_work_on_each_side() -> None:
    shared = share_sms(MIXED, HOPPER, Policy(), num_sms=132, memory_gbs=3352.0)
    expected = shares_of_sms(MIXED, head_dim=128, num_sms=132, memory_gbs=3352.0)
    assert (shared.decode_only_ctas, shared.prefill_only_ctas) == expected
    for base, policy in ((BASE, "portable-serial"), (HOPPER, "hopper-serial")):
        shared = share_sms(MIXED, base, parse_policy(policy), num_sms=132, memory_gbs=3352.0)
        assert shared is MIXED


def test_decode_is_tapered_in_a_fused_launch_only() -> None:
    assert tiling_of(HOPPER, 132, 4).taper_decode
    assert not tiling_of(HOPPER, 132, 4, parse_policy("hopper-serial")).taper_decode


def test_unlimited_splits_reach_the_planner() -> None:
    assert tiling_of(BASE, 10, 4, Policy(limit_splits=False)).prefill_waves is None
    assert tiling_of(BASE, 10, 4).prefill_waves == 1
