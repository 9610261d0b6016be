"""Which variant serves a batch."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from podrt.batch import HybridBatch
from podrt.dispatch import (
    Policy,
    base_variant,
    launches,
    nearest_ratio,
    parse_policy,
    tiling_of,
)
from podrt.errors import UnsupportedConfigError
from podrt.kernels.config import KernelConfig
from podrt.kernels.variants import RATIOS, variant
from podrt.layer import Layer, make_layer
from podrt.plan import Plan, make_plan

NUM_SMS = 132
BASE = variant("pod", "sm_90a", "bfloat16", 128)


def layer_of(page_size: int | None = None, causal: bool = True) -> Layer:
    return make_layer(32, 8, 128, page_size, "NHD", "bfloat16", causal, None)


def batch_of(q_lens: list[int], kv_lens: list[int]) -> HybridBatch:
    return HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )


def plan_of(q_lens: list[int], kv_lens: list[int]) -> Plan:
    batch = batch_of(q_lens, kv_lens)
    return make_plan(batch, tiling_of(BASE, NUM_SMS), num_kv_heads=8, group=4, causal=True)


def forms(configs: tuple[KernelConfig, ...]) -> list[str]:
    return [config.form for config in configs]


def ratio_of(config: KernelConfig) -> tuple[int, int]:
    return config.prefill_share, config.decode_share


MIXED = plan_of([4096] + [1] * 64, [4096] + [2048] * 64)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("auto", Policy()),
        ("proportional", Policy()),
        ("50:50", Policy(ratio=(1, 1))),
        ("serial", Policy(serial=True)),
        ("1:3", Policy(ratio=(1, 3))),
        ("64:1", Policy(ratio=(64, 1))),
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
    assert str(caught.value).startswith(f"policy={text!r}: allowed are 'auto', 'proportional'")
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


def test_every_compiled_ratio_is_its_own_nearest() -> None:
    assert [nearest_ratio(*ratio) for ratio in RATIOS] == list(RATIOS)


def test_mixed_batch_is_one_fused_launch_by_amount_of_work() -> None:
    (fused,) = launches(BASE, MIXED, parse_policy("auto"))
    assert fused.form == "pod"
    share = MIXED.num_prefill_units / (MIXED.num_decode_units / BASE.warps)
    wanted = math.log2(share)
    assert abs(math.log2(fused.prefill_share / fused.decode_share) - wanted) <= 0.5
    assert launches(BASE, MIXED, parse_policy("proportional")) == (fused,)


def test_explicit_ratio_is_taken_as_it_is() -> None:
    assert [ratio_of(c) for c in launches(BASE, MIXED, parse_policy("3:5"))] == [(3, 5)]
    assert [ratio_of(c) for c in launches(BASE, MIXED, parse_policy("50:50"))] == [(1, 1)]


def test_serial_is_one_launch_per_side() -> None:
    both = launches(BASE, MIXED, parse_policy("serial"))
    assert forms(both) == ["prefill", "decode"]
    assert {config.prefill for config in both} == {BASE.prefill}


@pytest.mark.parametrize("policy", ["auto", "serial", "1:3"])
def test_a_side_that_is_alone_gets_its_own_kernel(policy: str) -> None:
    prefill, decode = plan_of([512], [512]), plan_of([1, 1], [512, 7])
    assert forms(launches(BASE, prefill, parse_policy(policy))) == ["prefill"]
    assert forms(launches(BASE, decode, parse_policy(policy))) == ["decode"]


def test_lone_side_does_not_depend_on_the_ratio() -> None:
    decode = plan_of([1, 1], [512, 7])
    assert launches(BASE, decode, parse_policy("1:3")) == launches(BASE, decode, Policy())


@pytest.mark.parametrize("policy", ["auto", "serial"])
def test_no_work_is_no_launch(policy: str) -> None:
    assert launches(BASE, plan_of([0, 0], [5, 0]), parse_policy(policy)) == ()


@pytest.mark.parametrize(
    ("q_lens", "shape"),
    [
        # 8 KV heads and 32 tokens to a large tile: 33 tiles are 264 CTAs, two on each of 132 SMs.
        ([33 * 32], "large"),
        ([32 * 32], "small"),
        ([16 * 32 + 1, 16 * 32], "large"),
        ([5], "small"),
        ([1] * 100, "large"),
        ([0], "large"),
        ([4] * 1000, "large"),
    ],
)
def test_small_tiles_when_large_ones_would_leave_sms_without_prefill(
    q_lens: list[int], shape: str
) -> None:
    batch = batch_of(q_lens, [2048] * len(q_lens))
    chosen = base_variant(batch, layer_of(), arch="sm_90a", num_sms=NUM_SMS)
    assert chosen == variant("pod", "sm_90a", "bfloat16", 128, shape=shape)  # type: ignore[arg-type]


def test_variant_follows_the_layer() -> None:
    batch = HybridBatch.from_block_table(
        np.array([0, 1], np.int32),
        np.array([5], np.int32),
        shape=(1, 1),
        row_stride=1,
        page_size=32,
    )
    chosen = base_variant(batch, layer_of(32, causal=False), arch="sm_89", num_sms=NUM_SMS)
    assert (chosen.arch, chosen.page_size, chosen.causal) == ("sm_89", 32, False)
    assert (chosen.dtype, chosen.head_dim) == ("bfloat16", 128)


def test_tiling_describes_the_variant_on_the_gpu() -> None:
    tiling = tiling_of(BASE, 10)
    assert (tiling.prefill_rows, tiling.decode_rows) == (BASE.prefill.rows, 16)
    assert (tiling.prefill_kv_tile, tiling.decode_kv_tile) == (
        BASE.prefill.kv_tile,
        BASE.decode.kv_tile,
    )
    assert tiling.prefill_slots == 10 * BASE.ctas_per_sm
    assert tiling.decode_slots == 10 * BASE.ctas_per_sm * BASE.warps
