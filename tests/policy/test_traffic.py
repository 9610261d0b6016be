"""Which bytes prefill reads again."""

from __future__ import annotations

import numpy as np
import pytest
from schedule_support import scheduled

from podrt.plan import Plan, keys_of, prefill_unit
from podrt.policy.policies import Policy
from podrt.policy.traffic import keys_read, units_in_turn


def plan_of(q_lens: list[int], kv_lens: list[int], order: str | None = None) -> Plan:
    return scheduled(q_lens, kv_lens, policy=Policy(family="hopper", prefill_order=order)).plan


@pytest.mark.parametrize("order", ["head", "length", None])
@pytest.mark.parametrize("q_lens", [[2048], [4096, 900, 300, 77], [512] * 40])
def test_units_are_in_the_order_in_which_kernels_draw_them(
    q_lens: list[int], order: str | None
) -> None:
    plan = plan_of(q_lens, [8192] * len(q_lens), order)
    item, head = units_in_turn(plan)
    found = list(zip(item.tolist(), head.tolist(), strict=True))
    heads = plan.num_kv_heads
    units = range(plan.num_prefill_units)
    assert found == [prefill_unit(unit, plan.prefill_runs, heads) for unit in units]


def test_keys_that_stay_are_read_once() -> None:
    plan = plan_of([2048, 2048], [8192, 4096])
    unique = (8192 + 4096) * plan.num_kv_heads
    assert keys_read(plan, 132, unique) == (unique, 0)


def test_by_length_every_wave_reads_all_keys_again() -> None:
    plan = plan_of([2048], [16384], "length")
    unique = 16384 * plan.num_kv_heads
    waves = -(-plan.num_prefill_units // 132)
    read = keys_read(plan, 132, 0)
    assert read.unique == unique
    assert (waves - 1) * 0.9 * unique < read.repeated <= (waves - 1) * unique


def test_by_head_little_is_read_again() -> None:
    by_head, by_length = (
        keys_read(plan_of([2048], [16384], order), 132, 32768) for order in ("head", "length")
    )
    assert by_head.unique == by_length.unique
    assert by_head.repeated < by_length.repeated / 4


def test_nothing_is_read_for_less_than_its_keys() -> None:
    plan = plan_of([300, 40, 1000], [300, 4000, 1000])
    for resident in (0, 1000, 10**9):
        read = keys_read(plan, 7, resident)
        assert read.repeated >= 0
        assert read.unique <= int(np.sum(keys_of(plan.prefill))) * plan.num_kv_heads


def test_no_prefill_reads_nothing() -> None:
    assert keys_read(plan_of([1, 1], [100, 100]), 132, 0) == (0, 0)
