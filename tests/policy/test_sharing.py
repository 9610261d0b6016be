"""How the sides of a fused launch share the GPU: ratio of CTAs, SMs of one side."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from schedule_support import MIXED, batch_of, forms, layer_of, scheduled

from podrt.gpu.nominal import H100
from podrt.policy.policies import Policy
from podrt.policy.portable import RATIOS, nearest_ratio
from podrt.policy.schedule import Schedule, schedule

H200 = replace(H100, name="NVIDIA H200", memory_gbs=4917.0)


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


def ratio_of(result: Schedule) -> tuple[int, int]:
    return result.plan.prefill_share, result.plan.decode_share


def test_ratio_follows_the_work_on_each_side() -> None:
    few, many = (scheduled([4096] + [1] * decodes, policy="portable") for decodes in (64, 1024))
    for result in (few, many):
        assert forms(result) == ["pod"]
        units = result.plan.num_prefill_units, result.plan.num_decode_units / 4  # warps of a CTA
        prefill, decode = ratio_of(result)
        assert abs(math.log2(prefill / decode) - math.log2(units[0] / units[1])) <= 0.5
    assert ratio_of(few) != ratio_of(many)
    assert ratio_of(scheduled(*MIXED, "proportional")) == ratio_of(scheduled(*MIXED, "portable"))


def test_explicit_ratio_is_taken_as_it_is() -> None:
    assert ratio_of(scheduled(*MIXED, "3:5")) == (3, 5)
    assert ratio_of(scheduled(*MIXED, "50:50")) == (1, 1)


def test_lone_side_needs_no_ratio() -> None:
    for q_lens, kv_lens in (([1, 1], [512, 7]), ([512], [512]), ([0], [5])):
        assert ratio_of(scheduled(q_lens, kv_lens, "portable")) == (1, 1)
    assert ratio_of(scheduled(*MIXED, "portable-serial")) == (1, 1)


def shares(result: Schedule) -> tuple[int, int]:
    return result.plan.decode_only_ctas, result.plan.prefill_only_ctas


@pytest.mark.parametrize("number", [0, 24, 1024])
def test_sms_of_one_side_are_taken_as_they_are(number: int) -> None:
    assert shares(scheduled(*MIXED, f"decode-only={number}")) == (number, 0)
    assert shares(scheduled(*MIXED, f"prefill-only={number}")) == (0, number)


def test_sms_are_shared_by_the_work_on_each_side() -> None:
    long_decode = [2048] + [1] * 150, [16384] * 151
    decode_only, prefill_only = shares(scheduled(*long_decode))
    assert 0 < decode_only < 66 and prefill_only == 0
    one_head = layer_of(num_kv_heads=1, group=8)
    batch = batch_of([2048] + [1] * 64, [16384] + [8192] * 64)
    decode_only, prefill_only = shares(schedule(batch, one_head, H200, Policy()))
    assert decode_only == 0 < prefill_only
    for policy in ("portable", "hopper-serial"):
        assert shares(scheduled(*long_decode, policy)) == (0, 0)
