"""Decodes of steps in a row are planned alike, and as if no other step had come before."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from plan_support import tiling_of
from spec_support import spec_of

from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import Plan, RequestCuts, end_together, make_plan, places, tiles
from podrt.plan.growth import GROWTH_STEP
from podrt.plan.work import WORK_ITEM
from podrt.reference import check_plan
from podrt.spec import batch as batch_module
from podrt.spec.batch import HybridBatch

FAMILIES = {
    "hopper": hopper_variant("pod", "bfloat16", 128, page_size=16),
    "portable": variant("pod", "sm_80", "bfloat16", 128),
}
SPEC = spec_of(4, 4)
#: Moved from step to step of a span, and nothing else.
MOVED = {"kv_len", "kv_end"}


def contiguous(q_lens: list[int], kv_lens: np.ndarray) -> HybridBatch:
    indptr = np.concatenate(([0], np.cumsum(q_lens))).astype(np.int32)
    return HybridBatch.contiguous(indptr, np.asarray(kv_lens, np.int32))


def forget() -> None:
    """Drop all that planners keep from batch to batch."""
    for kept in (
        tiles._memory,
        end_together._memory,
        places._kept,
        batch_module._kept_query_lengths,
    ):
        kept.cache_clear()


def arrays_of(plan: Plan) -> list[object]:
    return [
        value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in plan._asdict().items()
        if name != "spec"
    ]


def random_steps(seed: int) -> list[tuple[list[int], np.ndarray]]:
    """Query lengths and keys of 40 steps; with prefill, a chunk that moves on and may change."""
    rng = np.random.default_rng(seed)
    decodes = int(rng.choice([1, 2, 5, 31, 130, 300]))
    q_lens = rng.choice([[1], [1, 1, 1, 2, 3]][seed % 2], decodes).tolist()
    kv_lens = rng.integers(*rng.choice([(1, 60), (500, 1500), (20, 9000)]), decodes)
    growth = np.full(decodes, rng.integers(1, 5))
    kv_lens = np.maximum(kv_lens, q_lens)
    steps, done = [], 0
    for step in range(40):
        grown = kv_lens + step * growth
        if seed % 3:
            if seed % 3 == 1 or step == 0:
                chunk = int(rng.choice([64, 500, 2048]))
            done += chunk
            place = 0 if seed % 2 else decodes  # in front of the decodes, or behind
            steps.append((np.insert(q_lens, place, chunk).tolist(), np.insert(grown, place, done)))
        else:
            steps.append((q_lens, grown))
    return steps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(24))
def test_a_plan_is_the_same_whatever_came_before(family: str, seed: int) -> None:
    tiling = tiling_of(FAMILIES[family], num_sms=132, group=4)
    steps = random_steps(seed)
    forget()
    in_turn = [make_plan(contiguous(*step), tiling, SPEC) for step in steps]
    for step, plan in zip(steps, in_turn, strict=True):
        check_plan(plan, contiguous(*step))
        forget()
        assert arrays_of(make_plan(contiguous(*step), tiling, SPEC)) == arrays_of(plan)


def decodes_at(longest: int, others: int = 63, **changes: object) -> Plan:
    kv_lens = np.append(np.arange(600, 600 + 7 * others, 7) + longest % GROWTH_STEP, longest)
    spec = spec_of(4, 4, **changes)
    tiling = tiling_of(FAMILIES["hopper"], num_sms=132, group=4)
    return make_plan(contiguous([1] * len(kv_lens), kv_lens), tiling, spec)


def test_steps_in_a_row_differ_in_the_ends_of_last_pieces_alone() -> None:
    first, *others = [decodes_at(4096 + step) for step in range(GROWTH_STEP)]
    for step, plan in enumerate(others, start=1):
        for name in WORK_ITEM.names or ():
            moved = plan.decode[name] - first.decode[name]
            if name in MOVED:
                last = first.decode["split"] == first.decode["num_splits"] - 1
                assert moved.tolist() == (step * (last | (name == "kv_len"))).tolist()
            else:
                assert not moved.any(), name
        assert plan.decode_keys == first.decode_keys + 64 * step


@pytest.mark.parametrize("lengths", [[1, 5], [3, 17, 16], [GROWTH_STEP + 3, 3]])
def test_a_decode_that_is_no_longer_than_that_has_its_own_length(lengths: list[int]) -> None:
    plan = make_plan(
        contiguous([1] * len(lengths), np.array(lengths)),
        tiling_of(FAMILIES["hopper"], num_sms=132, group=4),
        SPEC,
    )
    assert plan.decode["kv_end"].tolist() == sorted(lengths, reverse=True)
    assert plan.decode_keys == sum(lengths)


@pytest.mark.parametrize("layer", [{"window_left": 300}, {"tree_mask": True}], ids=str)
def test_windows_and_trees_move_with_every_step(layer: dict[str, int]) -> None:
    tiling = tiling_of(FAMILIES["hopper"], num_sms=132, group=4)
    for step in range(GROWTH_STEP):
        batch = contiguous([1, 2] * 20, np.arange(400, 4400, 100) + step)
        check_plan(make_plan(batch, tiling, spec_of(4, 4, **layer)), batch)


def test_pages_may_lie_elsewhere_at_every_step() -> None:
    tiling = tiling_of(FAMILIES["hopper"], num_sms=132, group=4)
    kv_lens = np.arange(400, 2400, 100, np.int32)
    indptr = np.arange(21, dtype=np.int32)
    for step in range(4):
        pages = np.cumsum([0, *(kv_lens // 16 + 2 + step)]).astype(np.int32)
        batch = HybridBatch.from_kv_indptr(
            indptr, kv_lens + step, kv_indptr=pages, num_kv_indices=int(pages[-1]), page_size=16
        )
        plan = make_plan(batch, tiling, spec_of(4, 4, page_size=16))
        assert (plan.decode["page_begin"] == pages[plan.decode["request"]]).all()


def test_requests_that_are_cut_by_themselves_are_planned_as_they_are() -> None:
    tiling = replace(
        tiling_of(FAMILIES["hopper"], num_sms=132, group=4), request_cuts=RequestCuts()
    )
    alone = make_plan(contiguous([1], np.array([5003])), tiling, SPEC)
    beside = make_plan(contiguous([1, 1], np.array([5003, 9001])), tiling, SPEC)
    own = ["kv_begin", "kv_end", "split"]
    of_first = beside.decode[beside.decode["request"] == 0]
    assert sorted(of_first[own].tolist()) == sorted(alone.decode[own].tolist())


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_threads_do_not_see_half_of_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread plans other requests of as many while this one compares with the last ones."""
    tiling = tiling_of(FAMILIES["hopper"], num_sms=132, group=4)
    keys = np.arange(1600, 1600 + 32 * 16, 16)
    behind = contiguous([64] + [1] * 32, np.array([64, *keys]))
    in_front = contiguous([1] * 32 + [64], np.array([*keys, 64]))
    others = contiguous([64] + [1] * 32, np.array([64, *(2 * keys)]))
    forget()
    make_plan(in_front, tiling, SPEC)
    compare, others_planned = tiles._common_growth, []

    def interrupted(before: Any, now: Any) -> int | None:
        if len(now) == 32 and not others_planned:
            others_planned.append(True)
            in_a_thread(lambda: make_plan(others, tiling, SPEC))
        return compare(before, now)

    monkeypatch.setattr(tiles, "_common_growth", interrupted)
    check_plan(make_plan(behind, tiling, SPEC), behind)
    assert others_planned


def test_threads_do_not_see_steps_before_they_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = contiguous([1] * 4, np.array([6000, 5000, 4000, 0]))
    tiling = replace(
        tiling_of(FAMILIES["hopper"], num_sms=8, group=4),
        decode_piece_keys=128,
        min_decode_keys=128,
    )
    plans: list[Plan] = []
    asked: list[bool] = []

    class Interrupted(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def ceil(self, *arguments: Any) -> Any:
            if not asked:
                asked.append(True)
                in_a_thread(lambda: plans.append(make_plan(batch, tiling, spec_of(2, 4))))
            return np.ceil(*arguments)

    forget()
    monkeypatch.setattr(tiles, "np", Interrupted("numpy"))
    make_plan(batch, tiling, spec_of(8, 4))
    check_plan(plans[0], batch)
    assert set(plans[0].decode["request"].tolist()) == {0, 1, 2, 3}
