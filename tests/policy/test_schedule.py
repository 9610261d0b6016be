"""What is planned for a batch and which kernels run it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

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
from podrt.gpu.arch import get_arch
from podrt.gpu.nominal import H100
from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import keys_of
from podrt.policy.policies import Policy, parse_policy
from podrt.policy.schedule import Schedule, Scheduler, schedule
from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import Mask


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_serial_is_one_launch_per_side(arch: str) -> None:
    both = scheduled(*MIXED, "serial", arch=arch)
    assert forms(both) == ["prefill", "decode"]
    assert {config.family for config in both.variants} == {both.base.family}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("policy", ["auto", "serial", "1:3"])
def test_a_side_that_is_alone_gets_its_own_kernel(policy: str, arch: str) -> None:
    assert forms(scheduled([512], [512], policy, arch=arch)) == ["prefill"]
    assert forms(scheduled([1, 1], [512, 7], policy, arch=arch)) == ["decode"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("policy", ["auto", "serial"])
@pytest.mark.parametrize(("q_lens", "kv_lens"), [([0, 0], [5, 0]), ([], [])])
def test_no_work_is_no_launch(
    policy: str, arch: str, q_lens: list[int], kv_lens: list[int]
) -> None:
    nothing = scheduled(q_lens, kv_lens, policy, arch=arch)
    assert nothing.variants == ()
    assert nothing.base.form == "pod"


@pytest.mark.parametrize(
    "q_lens",
    [[9 * 32], [8 * 32], [4 * 32 + 1, 4 * 32], [5], [5, 1, 1], [1] * 100, [0], [4] * 1000],
)
def test_portable_tiles_are_large_ones_whatever_the_batch(q_lens: list[int]) -> None:
    base = scheduled(q_lens, policy="portable").base
    assert base == variant("pod", "sm_90a", "bfloat16", 128, shape="large")


def test_policies_that_fix_the_shape() -> None:
    for policy, shape in (("ctas=2", "large"), ("ctas=4", "small")):
        base = scheduled([1, 5], policy=policy).base
        assert base == variant("pod", "sm_90a", "bfloat16", 128, shape=shape)


@pytest.mark.parametrize(("arch", "family"), [("sm_89", "portable"), ("sm_90a", "hopper")])
@pytest.mark.parametrize("policy", ["auto", "serial"])
def test_variants_follow_the_layer(arch: str, family: str, policy: str) -> None:
    batch = HybridBatch.from_block_table(
        np.array([0, 100, 101], np.int32),
        np.array([100, 5], np.int32),
        shape=(2, 4),
        row_stride=4,
        page_size=32,
    )
    layer = layer_of(32, causal=False, head_dim=64, dtype="float16")
    result = schedule(batch, layer, replace(H100, arch=get_arch(arch)), parse_policy(policy))
    assert result.plan.mask == Mask(causal=False)
    for config in (result.base, *result.variants):
        assert (config.family, config.arch) == (family, arch)
        assert (config.dtype, config.head_dim) == ("float16", 64)
        assert (config.page_size, config.causal) == (32, False)


@pytest.mark.parametrize(
    ("layer", "obstacle"),
    [
        (layer_of(group=129), "129 query heads"),
        (layer_of(v_head_dim=64), "v_head_dim=64; with head_dim=128 allowed are 128"),
    ],
    ids=["group beyond a tile", "narrow values"],
)
def test_layers_that_hopper_cannot_serve_are_portable(layer: AttentionSpec, obstacle: str) -> None:
    assert scheduled([1], layer=layer).base.family == "portable"
    with pytest.raises(
        UnsupportedConfigError, match=f"cannot serve this layer: {obstacle}"
    ) as caught:
        scheduled([1], policy="hopper", layer=layer)
    assert '"portable"' in str(caught.value)


def test_values_of_128_beside_keys_of_192_are_served_by_hopper() -> None:
    layer = layer_of(4, head_dim=192, v_head_dim=128)
    result = scheduled(*MIXED, layer=layer)
    assert {variant.name.split("_d192v128_")[0] for variant in result.variants} == {
        "pod_hopper_sm_90a_bf16"
    }
    # Partial results are as wide as values.
    rows, wide = (
        each.tiling.max_partial_rows
        for each in (result, scheduled(*MIXED, layer=layer_of(4, head_dim=192)))
    )
    assert rows is not None and wide is not None and rows * 2 == pytest.approx(wide * 3, abs=3)


@pytest.mark.parametrize("page_size", [1, 2, 4, 8, 12, 24, 1000])
def test_pages_of_any_size_are_served_by_hopper(page_size: int) -> None:
    result = scheduled([1], layer=layer_of(page_size))
    assert (result.base.family, result.base.page_size) == ("hopper", page_size)


def test_a_gathered_layer_of_wide_heads_has_decode_tiles_of_8_rows() -> None:
    layer = layer_of(4, head_dim=256)
    assert scheduled([1], layer=layer).base.decode_rows == 8
    with pytest.raises(UnsupportedConfigError, match="page_size=4 allowed are"):
        scheduled([1], policy=Policy(family="hopper", decode_rows=16), layer=layer)


@pytest.mark.parametrize("arch", ["sm_80", "sm_100", "sm_120"])
def test_other_gpus_are_portable(arch: str) -> None:
    assert scheduled([1], arch=arch).base.family == "portable"
    with pytest.raises(UnsupportedConfigError, match=f"sm_90a GPU; this one is {arch}"):
        scheduled([1], policy="hopper-serial", arch=arch)


@pytest.mark.parametrize("policy", ["portable", "portable-serial", "proportional", "50:50", "1:3"])
def test_portable_policies_hold_on_hopper(policy: str) -> None:
    assert scheduled([1], policy=policy).base.family == "portable"


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
        (4, [0] * 90 + [1] * 8 + [3] * 2, 16),  # requests without tokens do not count
    ],
)
def test_decode_tiles_hold_nearly_all_decodes_whole(
    group: int, q_lens: list[int], decode_rows: int
) -> None:
    result = scheduled(q_lens, layer=layer_of(group=group))
    assert result.base == hopper_variant("pod", "bfloat16", 128, decode_rows=decode_rows)
    assert result.plan.decode_rows == decode_rows


def test_decode_rows_may_be_fixed_whatever_the_batch() -> None:
    for q_lens in ([1] * 10, [1, 512], [8] * 10, [0]):
        result = scheduled(q_lens, decode_rows=32)
        assert (result.base.decode_rows, result.plan.decode_rows) == (32, 32)  # type: ignore[union-attr]
        assert {v.decode_rows for v in result.variants if v.form != "prefill"} <= {32}  # type: ignore[union-attr]


def test_hopper_launches_are_fused_unless_a_side_is_alone() -> None:
    fused, serial = scheduled(*MIXED), scheduled(*MIXED, "hopper-serial")
    assert fused.variants == (fused.base,) == (hopper_variant("pod", "bfloat16", 128),)
    assert serial.variants == tuple(
        hopper_variant(form, "bfloat16", 128) for form in ("prefill", "decode")
    )
    assert scheduled([512], [512]).variants == serial.variants[:1]
    assert scheduled([1], [512]).variants == serial.variants[1:]


def long_prefill(decodes: int, policy: str = "auto", *, head_dim: int = 128) -> Schedule:
    return scheduled(
        [16384] + [1] * decodes, [16384] * (1 + decodes), policy, layer=layer_of(head_dim=head_dim)
    )


def test_long_prefill_and_little_decode_are_launched_apart() -> None:
    prefill, decode = long_prefill(8).variants
    assert (prefill.form, decode.form) == ("prefill", "decode")
    assert prefill.kv_tile == 176  # type: ignore[union-attr]
    assert forms(long_prefill(8, "hopper")) == ["pod"]
    assert forms(long_prefill(16)) == ["pod"]


def test_tiles_that_are_as_large_in_a_fused_launch_are_no_reason_to_part() -> None:
    assert forms(long_prefill(8, head_dim=64)) == ["pod"]


def test_prefill_alone_gets_the_tile_for_its_units() -> None:
    (short,), (long,) = (scheduled(*each).variants for each in (([512], [4096]), ([2048], [16384])))
    assert (short.kv_tile, long.kv_tile) == (128, 176)  # type: ignore[union-attr]


@pytest.mark.parametrize(("group", "rows"), [(1, 128), (3, 126), (16, 128), (71, 71), (128, 128)])
def test_hopper_prefill_tiles_are_whole_tokens(group: int, rows: int) -> None:
    result = scheduled([1], layer=layer_of(group=group), num_sms=10, decode_rows=8)
    tiling, base = result.tiling, result.base
    assert (tiling.prefill_rows, tiling.decode_rows) == (rows, 8)
    # Splits begin where a tile does, and a bulk copy of up to 64 keys.
    assert [tiling.prefill_kv_tile % keys for keys in (base.kv_tile, 64)] == [0, 0]  # type: ignore[union-attr]
    assert (tiling.prefill_slots, tiling.decode_slots) == (10, 20)


def test_portable_tiling_is_that_of_two_ctas_of_four_warps() -> None:
    result = scheduled([1], policy="portable", num_sms=10)
    tiling, base = result.tiling, result.base
    assert (tiling.prefill_rows, tiling.decode_rows) == (128, 16)
    assert tiling.prefill_kv_tile == base.prefill.kv_tile  # type: ignore[union-attr]
    assert tiling.decode_kv_tile == base.decode.kv_tile  # type: ignore[union-attr]
    assert (tiling.prefill_slots, tiling.decode_slots) == (20, 80)


def test_no_piece_is_tapered_where_nothing_is_beside_decode() -> None:
    q_lens, kv_lens = [2048] + [1] * 100, [4096] + [16384] * 100
    fused, serial = scheduled(q_lens, kv_lens), scheduled(q_lens, kv_lens, "serial")
    lengths = [set(keys_of(each.plan.decode).tolist()) for each in (fused, serial)]
    assert len(lengths[0]) > len(lengths[1])
    assert max(lengths[0]) <= 4096 < max(lengths[1])


def test_unlimited_splits_cut_prefill_further() -> None:
    q_lens, kv_lens = [512] + [1] * 200, [16384] + [4096] * 200
    limited, unlimited = (
        len(scheduled(q_lens, kv_lens, policy).plan.prefill)
        for policy in ("portable", "splits=vanilla")
    )
    assert unlimited > limited


@pytest.mark.parametrize(("kv_len", "pieces"), [(1024, 1), (2047, 1), (2048, 3), (4096, 4)])
def test_prefill_of_few_keys_stays_whole(kv_len: int, pieces: int) -> None:
    plan = scheduled([512], [kv_len], layer=layer_of(num_kv_heads=1, group=8)).plan
    assert plan.prefill["num_splits"].max() == pieces


@pytest.mark.parametrize("policy", ["auto", "portable"])
def test_one_scheduler_gives_what_fresh_ones_give(policy: str) -> None:
    kept = Scheduler(layer_of(), H100, parse_policy(policy))
    for q_lens in ([512, 1], [1] * 5, [5] * 10, [512], [1] * 5, [512, 1]):
        batch = batch_of(q_lens, [4096] * len(q_lens))
        again = kept.schedule(batch)
        fresh = Scheduler(layer_of(), H100, parse_policy(policy)).schedule(batch)
        assert again.variants == fresh.variants
        assert (again.base, again.tiling) == (fresh.base, fresh.tiling)
        for side in ("prefill", "decode"):
            assert np.array_equal(getattr(again.plan, side), getattr(fresh.plan, side))


@pytest.mark.parametrize(
    ("arch", "policy"),
    [
        *product(("sm_80", "sm_90a"), ("auto", "serial", "1:3", "ctas=4", "splits=vanilla")),
        ("sm_90a", "portable"),
        ("sm_90a", "decode-only=8"),
    ],
)
def test_no_policy_changes_the_result(arch: str, policy: str) -> None:
    q_lens, kv_lens = [1, 40, 0, 7, 2], [900, 700, 12, 7, 0]
    result = scheduled(q_lens, kv_lens, policy, layer=layer_of(num_kv_heads=2), arch=arch)
    assert_plan_computes_attention(result.plan, batch_of(q_lens, kv_lens))


@pytest.mark.parametrize("policy", ["auto", "serial", "portable", "ctas=4"])
def test_every_kernel_that_a_batch_may_get_is_known_before(policy: str) -> None:
    scheduler = Scheduler(layer_of(), H100, parse_policy(policy))
    for tokens in (1, 2, 9):
        rows = scheduler.decode_rows_for(tokens)
        known = set(scheduler.variants(rows))
        for q_lens in ([], [1], [512], [512, 1], [16384] + [1] * 8, [4096], [tokens] * 3):
            batch = batch_of(q_lens, [max(q_len, 16384) for q_len in q_lens])
            assert set(scheduler.schedule(batch, decode_rows=rows).variants) <= known
        assert set(scheduler.captured(rows)) <= known
        assert set(scheduler.captured(rows, decodes_only=True)) <= known


def test_prefill_is_ordered_by_what_stays_in_l2() -> None:
    plans = [
        schedule(
            batch_of([2048] + [1] * 64, [8192] * 65),
            layer_of(),
            replace(H100, l2_bytes=mib << 20),
            parse_policy("auto"),
        ).plan
        for mib in (50, 500)
    ]
    assert [plan.prefill_runs for plan in plans] == [(len(plans[0].prefill),), ()]


@pytest.mark.parametrize("policy", ["auto", "portable", "serial", "splits=vanilla"])
def test_prefill_is_ordered_whatever_the_policy(policy: str) -> None:
    assert scheduled([2048] + [1] * 64, [16384] * 65, policy).plan.prefill_runs
