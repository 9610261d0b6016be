"""The order of prefill: every unit once, keys shared, and no later an end than longest first."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_support import tiling_of
from spec_support import spec_of

from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import MAX_RUNS, KeySharing, Plan, Tiling, keys_of, make_plan, prefill_unit
from podrt.reference import check_plan, execute_plan, reference_attention
from podrt.spec.attention import AttentionSpec, make_spec
from podrt.spec.batch import HybridBatch

SMS = 132
SHARING = KeySharing(resident_bytes=16_000_000, units_at_once=SMS)
HOPPER = replace(
    tiling_of(hopper_variant("pod", "bfloat16", 128), num_sms=SMS, group=4), key_sharing=SHARING
)
PORTABLE = replace(
    tiling_of(variant("pod", "sm_90a", "bfloat16", 128), num_sms=SMS, group=4), key_sharing=SHARING
)
Lengths = list[tuple[int, int]]


def layer(num_kv_heads: int = 8, group: int = 4, *, causal: bool = True) -> AttentionSpec:
    return make_spec(num_kv_heads * group, num_kv_heads, 128, None, "NHD", "bfloat16", causal, None)


def batch_of(lengths: Lengths) -> HybridBatch:
    q_lens = [q_len for q_len, _ in lengths]
    return HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array([kv for _, kv in lengths], np.int32)
    )


def planned(
    prompts: Lengths,
    tiling: Tiling = HOPPER,
    spec: AttentionSpec | None = None,
    decodes: int = 64,
) -> Plan:
    batch = batch_of(prompts + [(1, 2048)] * decodes)
    plan = make_plan(batch, tiling, spec or layer())
    check_plan(plan, batch)
    return plan


def drawn(plan: Plan) -> list[tuple[int, int]]:
    """Item and KV head of every unit of prefill, in the order in which they are handed out."""
    heads = plan.num_kv_heads
    return [prefill_unit(u, plan.prefill_runs, heads) for u in range(plan.num_prefill_units)]


def end_of(plan: Plan, slots: int = SMS) -> int:
    """Return when the last slot ends, in keys, of those that take one unit after the other."""
    keys = keys_of(plan.prefill)
    ends = [0] * slots
    for item, _ in drawn(plan):
        heapq.heappush(ends, heapq.heappop(ends) + int(keys[item]) + HOPPER.costs.start_keys)
    return max(ends)


def by_length(prompts: Lengths, spec: AttentionSpec | None = None, decodes: int = 64) -> Plan:
    return planned(prompts, replace(HOPPER, key_sharing=None), spec, decodes)


def test_a_request_goes_head_by_head_and_its_longest_tile_first() -> None:
    plan = planned([(2048, 16384)])
    tiles = len(plan.prefill)
    assert plan.prefill_runs == (tiles,)
    assert drawn(plan) == [(item, head) for head in range(8) for item in range(tiles)]
    assert (np.diff(keys_of(plan.prefill)) < 0).all()


def test_requests_go_one_after_the_other_by_their_longest_tile() -> None:
    plan = planned([(512, 16384), (512, 32768), (1024, 24576)])
    requests = plan.prefill["request"][[0, *plan.prefill_runs[:-1]]]
    assert requests.tolist() == [1, 2, 0]
    for begin, end in zip((0, *plan.prefill_runs), plan.prefill_runs, strict=False):
        of_run = plan.prefill[begin:end]
        assert len(set(of_run["request"])) == 1
        assert (np.diff(keys_of(of_run)) < 0).all()


def test_short_tiles_of_all_requests_are_kept_for_the_end() -> None:
    plan = planned([(4096, 4096), (1024, 1024), (2048, 8192)])
    behind = plan.prefill[plan.prefill_runs[-1] :]
    keys = keys_of(plan.prefill)
    assert set(behind["request"]) == {0, 1}
    assert (np.diff(keys_of(behind)) <= 0).all()
    assert keys_of(behind)[0] <= keys.max() // 2
    # They touch as many keys as stay in L2 and no more.
    touched = sum(int(behind["kv_end"][behind["request"] == r].max()) for r in (0, 1))
    assert touched * 8 * 512 <= SHARING.resident_bytes
    heads = [head for _, head in drawn(plan)[-len(behind) * 8 :]]
    assert heads == list(range(8)) * len(behind)


@pytest.mark.parametrize(
    ("prompts", "spec"),
    [
        ([(2048, 16384), (512, 4096)], layer(1, 8)),  # one head
        ([(512, 3800)], layer(8, 8)),  # all keys stay in L2
        ([(1024, 1024), (2048, 2048)], layer()),
        ([(512, 16384)], layer()),  # all units run at once
    ],
    ids=["one head", "keys of one", "keys of two", "at once"],
)
def test_nothing_changes_where_order_does_not_matter(prompts: Lengths, spec: AttentionSpec) -> None:
    plan, before = planned(prompts, spec=spec), by_length(prompts, spec)
    assert plan.prefill_runs == ()
    assert (plan.prefill == before.prefill).all()


@pytest.mark.parametrize(("decodes", "runs"), [(0, ()), (200, ()), (400, (16,))])
def test_units_that_run_at_once_go_head_by_head_behind_much_longer_decode(
    decodes: int, runs: tuple[int, ...]
) -> None:
    plan = planned([(512, 16384)], decodes=decodes)  # 16 tiles of 16 k keys
    assert plan.num_prefill_units <= SMS
    assert plan.prefill_runs == runs
    little = planned([(512, 3800)], decodes=decodes)  # of all heads they stay in L2
    assert little.prefill_runs == ()


def test_prompts_without_keys_have_no_runs() -> None:
    nothing_stays = replace(HOPPER, key_sharing=KeySharing(resident_bytes=0, units_at_once=1))
    for prompts in ([(2048, 0)], [(2048, 0), (300, 0)]):
        assert planned(prompts, nothing_stays).prefill_runs == ()


def test_of_many_requests_the_shortest_go_item_by_item() -> None:
    lengths = [4096 + 128 * number for number in range(40)]
    plan = planned([(512, kv_len) for kv_len in lengths])
    assert len(plan.prefill_runs) == MAX_RUNS
    behind = plan.prefill[plan.prefill_runs[-1] :]
    changes = np.flatnonzero(np.diff(behind["request"]))
    assert len(changes) == 40 - MAX_RUNS - 1  # each in one piece
    assert behind["request"][[0, *(changes + 1)]].tolist() == list(range(40 - MAX_RUNS - 1, -1, -1))


def test_decode_is_as_it_was() -> None:
    prompts = [(2048, 16384), (3000, 9000)]
    assert (planned(prompts).decode == by_length(prompts).decode).all()


#: Hopper's tiles; what stays in L2 and runs at once is little, so that small batches are ordered.
SMALL = replace(
    tiling_of(hopper_variant("pod", "bfloat16", 128), num_sms=4, group=4),
    min_prefill_keys=256,
    key_sharing=KeySharing(resident_bytes=300_000, units_at_once=4),
)


@st.composite
def ragged(draw: st.DrawFn, most: int = 6, longest: int = 600) -> Lengths:
    requests = draw(st.integers(1, most))
    q_lens = draw(st.lists(st.integers(0, longest), min_size=requests, max_size=requests))
    # Some have fewer keys than query tokens, or none.
    return [(q_len, max(q_len + draw(st.integers(-longest, longest)), 0)) for q_len in q_lens]


@settings(deadline=None, max_examples=60)
@given(
    lengths=ragged(most=50),
    num_kv_heads=st.sampled_from([1, 2, 3, 8]),
    causal=st.booleans(),
    resident=st.sampled_from([0, 100_000, 1_000_000]),
    split=st.booleans(),
)
def test_every_unit_of_any_batch_is_handed_out_once(
    lengths: Lengths, num_kv_heads: int, causal: bool, resident: int, split: bool
) -> None:
    tiling = replace(SMALL, key_sharing=KeySharing(resident, 4), prefill_waves=None if split else 1)
    batch = batch_of(lengths)
    plan = make_plan(batch, tiling, spec_of(num_kv_heads, 4, causal))
    check_plan(plan, batch)
    assert len(plan.prefill_runs) <= MAX_RUNS
    # The same items as ever, so that what they are split and merged by holds.
    before = make_plan(batch, replace(tiling, key_sharing=None), plan.spec)
    assert np.array_equal(np.sort(plan.prefill), np.sort(before.prefill))
    assert (np.diff(keys_of(plan.prefill_longest_first())) <= 0).all()


@settings(deadline=None, max_examples=15)
@given(lengths=ragged(most=4, longest=400), causal=st.booleans(), seed=st.integers(0, 99))
def test_executed_in_that_order_it_is_attention(lengths: Lengths, causal: bool, seed: int) -> None:
    batch, rng = batch_of(lengths), np.random.default_rng(seed)
    tokens, most = batch.total_tokens, max(1, *(kv_len for _, kv_len in lengths))
    q = rng.standard_normal((tokens, 8, 16))
    k, v = (rng.standard_normal((len(lengths), most, 2, 16)) for _ in "kv")
    plan = make_plan(batch, replace(SMALL, key_sharing=KeySharing(0, 1)), spec_of(2, 4, causal))
    for order in (None, seed):
        out, lse = execute_plan(plan, q, k, v, order=order)
        expected, expected_lse = reference_attention(q, k, v, batch, causal=causal)
        np.testing.assert_allclose(out, expected, atol=1e-12)
        np.testing.assert_allclose(lse, expected_lse, atol=1e-12)


@pytest.mark.parametrize(
    ("prompts", "heads"),
    [
        ([(2048, 16384)], 8),
        ([(4096, 4096)], 8),
        ([(1025, 7437), (1000, 1000)], 8),
        ([(1293, 1293), (1100, 1100), (700, 700), (300, 300)], 8),
        ([(1024, 32768), (512, 2048), (300, 900)], 8),
        ([(512, 16384)] * 4, 8),
        ([(2048, 32768)], 4),
    ],
)
def test_it_ends_about_as_soon_as_longest_first(prompts: Lengths, heads: int) -> None:
    spec = layer(heads)
    assert end_of(planned(prompts, spec=spec)) <= 1.02 * end_of(by_length(prompts, spec))


@settings(deadline=None, max_examples=40)
@given(
    prompts=st.lists(
        st.integers(64, 4096).flatmap(lambda q: st.tuples(st.just(q), st.integers(q, q + 30000))),
        min_size=1,
        max_size=8,
    )
)
def test_of_ragged_batches_none_ends_much_later(prompts: Lengths) -> None:
    assert end_of(planned(prompts)) <= 1.2 * end_of(by_length(prompts))


def test_the_portable_family_has_the_same_order() -> None:
    plan = planned([(2048, 16384)], PORTABLE)
    assert plan.prefill_runs == (len(plan.prefill),)


def test_runs_that_are_none_are_found_out() -> None:
    batch = batch_of([(2048, 16384)])
    plan = make_plan(batch, HOPPER, layer())
    items = len(plan.prefill)
    for runs in ((items + 1,), (0, items), (3, 2), (4, 4), tuple(range(1, 33))):
        fields = {name: getattr(plan, name) for name in Plan.__annotations__}
        wrong = Plan(**{**fields, "prefill_runs": runs})
        with pytest.raises(ValueError, match=r"prefill_runs=.*expected at most 31 ascending ends"):
            check_plan(wrong, batch)
