"""The number of SMs that decode alone follows the work on each side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from podrt.gpu.nominal import H100
from podrt.plan import Plan, keys_of
from podrt.policy import calibration
from podrt.policy.calibration import calibration_of
from podrt.policy.constants import SmSharing
from podrt.policy.policies import Policy
from podrt.policy.schedule import schedule
from podrt.policy.sm_allocation import SmAllocation
from podrt.spec.attention import make_spec
from podrt.spec.batch import HybridBatch

NUM_SMS = 132
H100_GBS, H200_GBS = 3352.0, 4917.0


def unshared(
    q_lens: list[int], kv_lens: list[int], num_kv_heads: int, group: int, *, causal: bool = True
) -> Plan:
    """Plan heads of 128 without sharing the SMs."""
    batch = HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )
    heads = num_kv_heads * group, num_kv_heads
    layer = make_spec(*heads, 128, None, "NHD", "bfloat16", causal, None)
    return schedule(batch, layer, H100, Policy(family="hopper", decode_only_sms=0)).plan


def plan_of(prefill: tuple[int, int] | tuple[()], decodes: int, kv_len: int) -> Plan:
    """32 query and 8 KV heads; `prefill` is a chunk and its keys."""
    requests = [prefill] * bool(prefill) + [(1, kv_len)] * decodes
    q_lens, kv_lens = zip(*requests, strict=True)
    return unshared(list(q_lens), list(kv_lens), 8, 4)


def allocation(memory_gbs: float) -> SmAllocation:
    return SmAllocation(NUM_SMS, memory_gbs, calibration.H200.sm_sharing)


def chosen(plan: Plan, memory_gbs: float = H200_GBS) -> int:
    return allocation(memory_gbs).shares(plan)[0]


def test_a_lone_side_needs_none() -> None:
    assert chosen(plan_of((2048, 16384), 0, 0)) == 0
    assert chosen(plan_of((), 64, 16384)) == 0


def test_none_when_prefill_is_the_longer_side() -> None:
    assert chosen(plan_of((2048, 16384), 16, 8192)) == 0


def test_some_when_decode_is_the_longer_side_and_most_at_a_third() -> None:
    even, longer, much_longer = (
        chosen(plan_of((2048, 16384), decodes, 16384)) for decodes in (64, 150, 2000)
    )
    assert 0 < even < longer
    assert much_longer == 0


@pytest.mark.parametrize("decodes", [40, 64, 150, 400])
def test_never_more_than_fill_the_memory_bus(decodes: int) -> None:
    plan = plan_of((2048, 16384), decodes, 16384)
    for memory_gbs in (H100_GBS, H200_GBS):
        assert chosen(plan, memory_gbs) <= memory_gbs / 85


def test_prefill_is_not_made_to_outlast_decode() -> None:
    """128 long units need two waves on fewer than 128 SMs, and those last longer than decode."""
    plan = plan_of((493, 14885), 19, 12534)
    assert plan.num_prefill_units == 128
    assert chosen(plan) <= 4
    short = plan_of((493, 4000), 11, 12534)
    assert short.num_prefill_units == 128
    assert chosen(short) > 4


def kept_for_prefill(plan: Plan, memory_gbs: float = H200_GBS) -> int:
    return allocation(memory_gbs).shares(plan)[1]


def one_head_plan(decodes: int, *, causal: bool = True) -> Plan:
    """128 prefill tiles of 14352 to 16384 keys, or all of 16384, and decodes of 8192 keys."""
    q_lens, kv_lens = [2048] + [1] * decodes, [16384] + [8192] * decodes
    return unshared(q_lens, kv_lens, 1, 8, causal=causal)


def test_longest_tiles_are_left_alone_while_the_other_sms_can_decode() -> None:
    few, some, many = (kept_for_prefill(one_head_plan(decodes)) for decodes in (64, 128, 200))
    assert few > some > many == 0
    assert kept_for_prefill(one_head_plan(128), H100_GBS) == 0  # decode takes as long there


def test_tiles_of_one_length_all_have_decode_beside_them() -> None:
    assert kept_for_prefill(one_head_plan(64, causal=False)) == 0


def test_no_sms_are_kept_for_more_tiles_than_they_have_or_for_a_lone_side() -> None:
    assert kept_for_prefill(plan_of((2048, 16384), 16, 8192)) == 0  # 512 units
    assert kept_for_prefill(one_head_plan(0)) == 0
    assert kept_for_prefill(plan_of((), 64, 16384)) == 0


def test_sms_are_kept_for_one_side_at_most() -> None:
    decode_only, prefill_only = allocation(H200_GBS).shares(plan_of((2048, 16384), 150, 16384))
    assert decode_only > 0 == prefill_only
    decode_only, prefill_only = allocation(H200_GBS).shares(one_head_plan(128))
    assert decode_only == 0 < prefill_only


@pytest.mark.parametrize("memory_gbs", [0.0, -1.0, float("nan")])
def test_memory_without_bandwidth_is_refused(memory_gbs: float) -> None:
    with pytest.raises(ValueError, match=f"memory_gbs={memory_gbs}: must be greater than 0"):
        allocation(memory_gbs)


def test_prefill_that_sees_no_key_needs_no_sms() -> None:
    plan = unshared([512, 1], [0, 8192], 8, 4)
    assert allocation(H100_GBS).shares(plan) == (0, 0)
    assert chosen(plan) == kept_for_prefill(plan) == 0


def test_the_order_of_prefill_changes_nothing() -> None:
    """What is estimated are waves of the longest units, in whatever order they are handed out."""
    plan = unshared([2048, 700, 1024] + [1] * 64, [4096] * 3 + [16384] * 64, 8, 4)
    assert len(plan.prefill_runs) > 1
    by_length = plan._replace(prefill=plan.prefill_longest_first(), prefill_runs=())
    assert (np.diff(keys_of(by_length.prefill)) <= 0).all()
    shares = allocation(H100_GBS).shares
    assert shares(plan) == shares(by_length)
    # Waves of the units as they are handed out would tell otherwise.
    assert shares(plan) != shares(plan._replace(prefill_runs=()))


def test_first_ctas_get_the_longest_tiles_where_some_are_kept_for_them() -> None:
    """Head by head the first CTAs would have whatever tiles the first heads have."""
    kept = by_head = 0
    for prefill, heads in (((2048, 16384), 1), ((1024, 12288), 4), ((512, 16384), 8)):
        for decodes in (1, 2, 4, 8, 16, 32, 64, 128):
            lengths = [prefill[1]] + [16384] * decodes
            plan = unshared([prefill[0]] + [1] * decodes, lengths, heads, 4)
            assert plan.num_prefill_units <= NUM_SMS
            by_head += bool(plan.prefill_runs)
            for memory_gbs in (H100_GBS, H200_GBS):
                prefill_first = allocation(memory_gbs).shares(plan)[1]
                kept += prefill_first > 0
                assert not (prefill_first and plan.prefill_runs)
    assert kept and by_head


def test_gpus_get_the_constants_of_the_one_with_the_likest_memory() -> None:
    def of(memory_gbs: float, num_sms: int = NUM_SMS) -> SmSharing:
        gpu = replace(H100, memory_gbs=memory_gbs, num_sms=num_sms)
        return calibration_of(gpu).sm_sharing

    assert of(H100_GBS) is of(3900.0) is of(2039.0, 114) is calibration.H100.sm_sharing
    assert of(4807.0) is of(H200_GBS) is of(8000.0) is calibration.H200.sm_sharing


def test_slow_memory_is_kept_full_by_a_few_sms() -> None:
    sharing = SmAllocation(NUM_SMS, H100_GBS, calibration.H100.sm_sharing)
    few = [sharing.shares(plan_of((2048, 16384), n, 16384)) for n in (8, 50, 64, 120, 800)]
    assert few == [(0, 16), (4, 0), (4, 0), (4, 0), (0, 0)]


def test_launches_that_are_over_soon_have_more_sms_that_decode_first() -> None:
    sharing = SmAllocation(NUM_SMS, H100_GBS, calibration.H100.sm_sharing)
    short, longer = (sharing.shares(plan_of((1008, 1248), n, 2000)) for n in (14, 28))
    assert (short, longer) == ((16, 0), (4, 0))


def test_short_launches_that_wait_for_prefill_do_not() -> None:
    sharing = SmAllocation(NUM_SMS, H100_GBS, calibration.H100.sm_sharing)
    assert sharing.shares(plan_of((1008, 4000), 12, 2000))[0] == 0


def test_sixteen_decode_first_beside_a_long_chunk_on_an_h200() -> None:
    assert 15 <= chosen(plan_of((2048, 16384), 64, 16384)) <= 17
