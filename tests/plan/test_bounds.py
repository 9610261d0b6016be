"""What is set aside for plans within limits is enough for each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_support import tiling_of
from spec_support import spec_of

from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import (
    Plan,
    PlanBounds,
    RequestCuts,
    Tiling,
    make_plan,
    partial_rows_within,
    plan_bounds,
)
from podrt.reference import check_plan
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import Mask

GROUPS = (1, 4, 7, 8, 20, 71)
CAUSAL = Mask()
windows = st.one_of(st.none(), st.integers(0, 300), st.sampled_from([0, 4096]))
masks = st.one_of(
    st.builds(Mask, st.booleans(), windows), st.builds(Mask, st.just(True), windows, st.just(True))
)


def tilings(group: int) -> st.SearchStrategy[Tiling]:
    hopper = st.builds(
        lambda rows, sms: tiling_of(
            hopper_variant("pod", "bfloat16", 128, decode_rows=rows), sms, group
        ),
        st.sampled_from([8, 16, 32]),
        st.sampled_from([1, 8, 132]),
    )
    portable = st.builds(
        lambda sms: tiling_of(variant("pod", "sm_90a", "bfloat16", 128), sms, group),
        st.sampled_from([1, 8, 132]),
    )
    changed = {
        "max_partial_rows": st.one_of(st.none(), st.integers(0, 3000), st.just(10**6)),
        "prefill_waves": st.sampled_from([None, 1, 2]),
        "request_cuts": st.sampled_from([None, None, RequestCuts(), RequestCuts(256)]),
    }
    return st.builds(replace, st.one_of(hopper, portable), **changed)


@st.composite
def limited(draw: st.DrawFn) -> tuple[int, dict[str, int], list[tuple[int, int]]]:
    """A group, limits, and requests ``(q_len, kv_len)`` within them."""
    group = draw(st.sampled_from(GROUPS))
    max_kv_len = draw(st.one_of(st.integers(0, 2000), st.integers(0, 100_000)))
    limits = {
        "max_requests": draw(st.integers(0, 40)),
        "max_tokens": draw(st.integers(0, 3000)),
        "max_kv_len": max_kv_len,
    }
    left, requests = limits["max_tokens"], []
    for _ in range(draw(st.integers(0, limits["max_requests"]))):
        q_len = draw(st.one_of(st.integers(0, min(5, left)), st.integers(0, left)))
        requests.append((q_len, draw(st.one_of(st.just(max_kv_len), st.integers(0, max_kv_len)))))
        left -= q_len
    return group, limits, requests


def plan_of(
    requests: list[tuple[int, int]],
    tiling: Tiling,
    heads: int,
    group: int,
    mask: Mask = CAUSAL,
) -> Plan:
    spec = spec_of(heads, group, mask.causal, window_left=mask.window_left, tree_mask=mask.tree)
    return make_plan(batch_of(requests), tiling, spec)


def batch_of(requests: list[tuple[int, int]]) -> HybridBatch:
    q_lens, kv_lens = ([request[i] for request in requests] for i in (0, 1))
    return HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )


@settings(deadline=None, max_examples=300)
@given(case=limited(), data=st.data(), heads=st.sampled_from([1, 3, 8]), mask=masks)
def test_no_plan_within_the_limits_exceeds_the_bounds(
    case: tuple[int, dict[str, int], list[tuple[int, int]]],
    data: st.DataObject,
    heads: int,
    mask: Mask,
) -> None:
    group, limits, requests = case
    tiling = data.draw(tilings(group))
    bounds = plan_bounds(tiling, num_kv_heads=heads, group=group, **limits, mask=mask)
    plan = plan_of(requests, tiling, heads, group, mask)
    assert len(plan.prefill) + len(plan.decode) <= bounds.items
    assert plan.partial_rows <= bounds.partial_rows
    assert plan.num_merges <= bounds.merges
    if tiling.max_partial_rows is not None and tiling.request_cuts is None:
        assert bounds.partial_rows <= tiling.max_partial_rows


HOPPER = tiling_of(hopper_variant("pod", "bfloat16", 128, decode_rows=8), 132, 4)
MANY = {"max_requests": 256, "max_tokens": 2048, "max_kv_len": 131_072}


def test_a_batch_that_reaches_the_limits_comes_near_the_bounds() -> None:
    tiling = replace(HOPPER, max_partial_rows=16384)
    bounds = plan_bounds(tiling, num_kv_heads=8, group=4, **MANY)
    plan = plan_of([(1, 131_072)] * 256, tiling, 8, 4)
    assert 0.9 * bounds.partial_rows <= plan.partial_rows <= bounds.partial_rows
    assert bounds.items <= 1.5 * len(plan.decode)


@pytest.mark.parametrize(
    "limits", [{"max_requests": 0}, {"max_tokens": 0}, {"max_requests": 0, "max_tokens": 0}]
)
def test_no_requests_or_tokens_need_nothing(limits: dict[str, int]) -> None:
    assert plan_bounds(HOPPER, num_kv_heads=8, group=4, **(MANY | limits)) == PlanBounds(0, 0, 0)


def test_short_requests_need_no_partial_results() -> None:
    bounds = plan_bounds(HOPPER, num_kv_heads=8, group=4, **(MANY | {"max_kv_len": 128}))
    assert bounds[1:] == (0, 0)


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    group=st.sampled_from(GROUPS),
    heads=st.sampled_from([1, 8]),
    requests=st.lists(
        st.tuples(st.sampled_from([1, 1, 2, 40, 300]), st.integers(0, 40_000)), max_size=12
    ),
    most=st.integers(0, 4000),
)
def test_a_bound_on_partial_rows_holds_and_changes_nothing_while_it_is_kept(
    data: st.DataObject,
    group: int,
    heads: int,
    requests: list[tuple[int, int]],
    most: int,
) -> None:
    tiling = replace(data.draw(tilings(group)), max_partial_rows=None, request_cuts=None)
    free = plan_of(requests, tiling, heads, group)
    bound = plan_of(requests, replace(tiling, max_partial_rows=most), heads, group)
    assert bound.partial_rows <= most
    if free.partial_rows <= most:
        assert bound.prefill.tobytes() == free.prefill.tobytes()
        assert bound.decode.tobytes() == free.decode.tobytes()
    assert (bound.prefill_keys, bound.decode_keys) == (free.prefill_keys, free.decode_keys)


@settings(deadline=None, max_examples=30)
@given(
    requests=st.lists(
        st.tuples(st.sampled_from([1, 1, 2, 40]), st.integers(0, 3000)), min_size=1, max_size=5
    ),
    most=st.integers(0, 1000),
)
def test_bounded_plans_are_complete(requests: list[tuple[int, int]], most: int) -> None:
    plan = plan_of(requests, replace(HOPPER, max_partial_rows=most), 1, 4)
    check_plan(plan, batch_of(requests))


def test_both_sides_keep_their_share_of_a_bound() -> None:
    requests = [(600, 60_000), *[(1, 60_000)] * 4]
    free = plan_of(requests, HOPPER, 1, 4)
    assert (free.prefill["num_splits"] > 1).any()
    assert (free.decode["num_splits"] > 1).any()
    bound = plan_of(requests, replace(HOPPER, max_partial_rows=free.partial_rows // 2), 1, 4)
    assert bound.partial_rows <= free.partial_rows // 2
    for items in (bound.prefill, bound.decode):
        assert (items["num_splits"] > 1).any()


def test_rows_of_partial_results_that_fit_into_memory() -> None:
    assert partial_rows_within(64 * 2**20, 8, 128) == 16384
    assert partial_rows_within(4095, 8, 128) == 0


def test_a_window_bounds_the_pieces_of_the_longest_request() -> None:
    limits = MANY | {"max_kv_len": 10**6}
    far, near = (
        plan_bounds(HOPPER, num_kv_heads=8, group=4, **limits, mask=Mask(True, window))
        for window in (None, 4096)
    )
    assert near.items < far.items / 10
    assert near.partial_rows < far.partial_rows / 10
