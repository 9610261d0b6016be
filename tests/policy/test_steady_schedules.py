"""Decodes of steps in a row take from the step before the schedule that planning would give."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from schedule_support import layer_of

from podrt.gpu.nominal import H100
from podrt.plan import make_plan
from podrt.plan.growth import GROWTH_STEP
from podrt.policy import schedule as schedule_module
from podrt.policy.policies import Policy
from podrt.policy.schedule import Schedule, Scheduler
from podrt.spec.attention import make_spec
from podrt.spec.batch import HybridBatch

PAGE = 16
_RULES = Policy()


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[HybridBatch]:
    """Batches that were planned from the beginning."""
    seen: list[HybridBatch] = []

    def counted(batch: HybridBatch, *others: Any) -> Any:
        seen.append(batch)
        return make_plan(batch, *others)

    monkeypatch.setattr(schedule_module, "make_plan", counted)
    return seen


def scheduler(policy: Policy = _RULES) -> Scheduler:
    return Scheduler(layer_of(PAGE), H100, policy)


def paged(q_lens: list[int], kv_lens: Any, spare: int = 4) -> HybridBatch:
    """A batch whose requests have some pages to spare."""
    pages = np.cumsum([0, *(np.asarray(kv_lens) // PAGE + spare)]).astype(np.int32)
    return HybridBatch.from_kv_indptr(
        np.cumsum([0, *q_lens]).astype(np.int32),
        np.asarray(kv_lens, np.int32),
        kv_indptr=pages,
        num_kv_indices=int(pages[-1]),
        page_size=PAGE,
    )


def told(schedule: Schedule) -> list[Any]:
    """All of a schedule, to be compared."""
    of_plan = [x.tolist() if isinstance(x, np.ndarray) else x for x in schedule.plan]
    return [*of_plan, schedule.variants, schedule.base, schedule.tiling]


@pytest.mark.parametrize(
    "policy", [Policy(), Policy(serial=True), Policy(family="portable")], ids=str
)
@pytest.mark.parametrize("seed", range(6))
def test_a_schedule_is_the_same_whatever_came_before(policy: Policy, seed: int) -> None:
    rng = np.random.default_rng(seed)
    in_turn, count = scheduler(policy), int(rng.choice([1, 3, 40, 140]))
    q_lens, kv_lens = [1] * count, rng.integers(1, rng.choice([60, 3000]), count)
    for step in range(60):
        turn = rng.integers(0, 12)
        if turn == 0:  # another request in the place of one
            kv_lens[rng.integers(count)] = rng.integers(1, 3000)
        if turn == 1:
            kv_lens = kv_lens + rng.integers(0, 3, count)  # as drafts that were accepted or not
        if turn == 2:
            q_lens = rng.integers(rng.integers(2), 3, count).tolist()
        if turn == 3:
            q_lens = [1] * count
        kv_lens = np.maximum(kv_lens + 1, q_lens)
        chunk = [700] if turn == 4 else []  # of a prompt, for a step
        batch = paged([*q_lens, *chunk], [*kv_lens, *chunk])
        alone = scheduler(policy).schedule(batch)
        assert told(in_turn.schedule(batch)) == told(alone), step


def test_steps_of_a_span_are_planned_once(planned: list[HybridBatch]) -> None:
    in_turn, kv_lens = scheduler(), np.arange(1600, 1600 + 40 * PAGE, PAGE)
    for step in range(3 * GROWTH_STEP):
        in_turn.schedule(paged([1] * 40, kv_lens + step))
    # Before that, a step that might have been the only one.
    assert [int(each.max_kv_len) % GROWTH_STEP for each in planned] == [0, 1, 0, 0]


def test_decode_tiles_that_are_reserved_have_schedules_of_their_own() -> None:
    in_turn, kv_lens = scheduler(), np.arange(1600, 1600 + 40 * PAGE, PAGE)
    for step in range(6):
        for rows in (None, 32, 16):
            batch = paged([1] * 40, kv_lens + step)
            alone = scheduler().schedule(batch, decode_rows=rows)
            assert told(in_turn.schedule(batch, decode_rows=rows)) == told(alone)


@pytest.mark.parametrize("policy", [Policy(), Policy(deterministic=True)], ids=str)
def test_pages_elsewhere_are_found(policy: Policy) -> None:
    in_turn, kv_lens = scheduler(policy), np.arange(1600, 1600 + 40 * PAGE, PAGE)
    for step in range(6):
        batch = paged([1] * 40, kv_lens + step, spare=4 + step // 2)
        assert told(in_turn.schedule(batch)) == told(scheduler(policy).schedule(batch))


@pytest.mark.parametrize("layer", [{"window_left": 300}, {"tree_mask": True}], ids=str)
def test_windows_and_trees_are_planned_at_every_step(
    planned: list[HybridBatch], layer: dict[str, Any]
) -> None:
    spec = make_spec(32, 8, 128, PAGE, "NHD", "bfloat16", **layer)
    in_turn = Scheduler(spec, H100, Policy())
    for step in range(5):
        batch = paged([1] * 40, np.arange(1600, 1600 + 40 * PAGE, PAGE) + step)
        found = told(in_turn.schedule(batch))
        assert found == told(Scheduler(spec, H100, Policy()).schedule(batch))
    assert len(planned) == 10


def test_what_was_given_out_stays_as_it_is() -> None:
    in_turn, kv_lens = scheduler(), np.arange(1600, 1600 + 40 * PAGE, PAGE)
    plans = [in_turn.schedule(paged([1] * 40, kv_lens + step)).plan for step in range(6)]
    for before, after in pairwise(plans):
        assert (after.decode["kv_len"] - before.decode["kv_len"] == 1).all()
