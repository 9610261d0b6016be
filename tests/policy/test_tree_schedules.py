"""Schedules of layers with a tree mask: which decode tile, which kernels, on both families."""

from __future__ import annotations

import numpy as np
import pytest

from podrt.gpu.nominal import H100
from podrt.policy.policies import Policy, parse_policy
from podrt.policy.schedule import Scheduler
from podrt.reference import check_plan
from podrt.runtime.reservation import Limits, room_for
from podrt.spec.attention import AttentionSpec, make_spec
from podrt.workloads.lengths import batch_of_lengths


def layer(*, tree_mask: bool = True, head_dim: int = 128, **others: float) -> AttentionSpec:
    return make_spec(
        32,
        8,
        head_dim,
        16,
        "NHD",
        "bfloat16",
        tree_mask=tree_mask,
        **others,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("policy", ["hopper", "portable", "hopper-serial", "portable-serial"])
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_all_kernels_of_a_schedule_are_for_trees(
    policy: str, cap: float | None, head_dim: int
) -> None:
    others = {} if cap is None else {"logits_soft_cap": cap}
    scheduler = Scheduler(layer(head_dim=head_dim, **others), H100, parse_policy(policy))
    batch = batch_of_lengths([(700, 900), (64, 800), (1, 3000), (26, 500)], 16)
    chosen = scheduler.schedule(batch)
    check_plan(chosen.plan, batch)
    assert all(variant.tree_mask for variant in chosen.variants)
    assert {*chosen.plan.prefill["request"].tolist()} == {0}
    scheduler.predict(chosen)
    scheduler.why(chosen)


@pytest.mark.parametrize(
    ("tokens", "rows"), [(1, 8), (2, 8), (4, 16), (8, 32), (9, 32), (26, 32), (64, 32)]
)
def test_trees_get_the_smallest_tile_that_holds_them_or_the_largest(tokens: int, rows: int) -> None:
    batch = batch_of_lengths([(tokens, 1000)] * 20, 16)
    chosen = Scheduler(layer(), H100, parse_policy("hopper")).schedule(batch)
    assert chosen.plan.decode_rows == rows
    assert len(chosen.plan.prefill) == 0
    assert [variant.form for variant in chosen.variants] == ["decode"]


def test_without_trees_as_many_tokens_are_a_prefill() -> None:
    batch = batch_of_lengths([(26, 1000)] * 20, 16)
    chosen = Scheduler(layer(tree_mask=False), H100, parse_policy("hopper")).schedule(batch)
    assert len(chosen.plan.decode) == 0


def test_a_fixed_tile_is_no_obstacle_to_more_tokens() -> None:
    scheduler = Scheduler(layer(), H100, Policy(family="hopper", decode_rows=8))
    assert scheduler.decode_rows_for(64) == 8
    plan = scheduler.schedule(batch_of_lengths([(64, 300)], 16)).plan
    assert {*(plan.decode["row_begin"]).tolist()} == {*range(0, 256, 8)}


def test_a_reservation_has_room_for_the_words() -> None:
    rooms = [
        room_for(Limits(4, 1000, 3000), Scheduler(layer(tree_mask=tree), H100, Policy()))
        for tree in (False, True)
    ]
    assert rooms[1].plan_bytes >= rooms[0].plan_bytes + 8 * 1000


def test_deterministic_work_of_a_tree_is_its_own() -> None:
    scheduler = Scheduler(layer(), H100, Policy(deterministic=True))
    fields = ["q_len", "kv_len", "row_begin", "kv_begin", "kv_end", "split", "num_splits"]
    works = []
    for others in ([], [(1, 900)] * 50, [(2000, 4000), (64, 64)]):
        plan = scheduler.schedule(batch_of_lengths([(40, 5000), *others], 16)).plan
        mine = plan.decode[plan.decode["request"] == 0]
        works.append(np.sort(mine[fields], order=fields).tolist())
    assert works[0] == works[1] == works[2]
