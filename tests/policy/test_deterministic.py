"""`deterministic=True`: what computes a request does not depend on what else is in the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_support import batch_of, forms, layer_of, scheduled, work_of

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import get_arch
from podrt.gpu.nominal import H100
from podrt.plan import Plan
from podrt.policy.explain import explain
from podrt.policy.policies import Policy, policy_of
from podrt.policy.schedule import Schedule, Scheduler
from podrt.reference import execute_plan
from podrt.spec.attention import AttentionSpec

Request = tuple[int, int]  # query tokens and keys

FAMILIES = pytest.mark.parametrize("family", ["hopper", "portable"])
SERIAL = pytest.mark.parametrize("serial", [None, False, True])

lengths = st.one_of(st.integers(1, 40), st.integers(1, 20_000), st.sampled_from([2048, 8192]))
requests = st.tuples(st.one_of(st.integers(0, 9), st.integers(0, 2100)), lengths)


def schedule_of(
    batch: list[Request], policy: Policy, layer: AttentionSpec | None = None, num_sms: int = 132
) -> Schedule:
    q_lens, kv_lens = ([request[i] for request in batch] for i in (0, 1))
    return scheduled(q_lens, kv_lens, policy, layer=layer, num_sms=num_sms)


@settings(deadline=None, max_examples=150)
@given(
    batch=st.lists(requests, min_size=1, max_size=40),
    family=st.sampled_from(["hopper", "portable"]),
    serial=st.sampled_from([None, True]),
    num_sms=st.sampled_from([132, 78]),
    heads=st.sampled_from([1, 8]),
    group=st.sampled_from([1, 4, 7]),
)
def test_a_request_has_the_same_work_and_kernels_in_any_batch(
    batch: list[Request], family: Any, serial: bool | None, num_sms: int, heads: int, group: int
) -> None:
    policy = Policy(family=family, serial=serial, deterministic=True)
    layer = layer_of(num_kv_heads=heads, group=group)
    together = schedule_of(batch, policy, layer)
    for number, request in enumerate(batch[:8]):
        alone = schedule_of([request], policy, layer, num_sms)
        assert work_of(together, number) == work_of(alone, 0)


def test_without_it_the_rest_of_the_batch_matters() -> None:
    """Tiles, splits and kernels do, each of which this would notice."""
    for others in ([(1, 8192)] * 300, [(3, 200)] * 20, [(2048, 16384)]):
        alone, together = (
            schedule_of([(1, 8192), *rest], Policy(family="hopper")) for rest in ([], others)
        )
        assert work_of(alone, 0) != work_of(together, 0)


@FAMILIES
@SERIAL
def test_each_role_has_one_kernel_whatever_the_batch(family: Any, serial: bool | None) -> None:
    policy = Policy(family=family, serial=serial, deterministic=True)
    both = ["prefill", "decode"] if serial else ["pod"]
    batches = [(1, 5000)], [(2048, 65536)], [(4096, 65536), (1, 20)], [(1, 5000), (600, 600)]
    found = [schedule_of(list(batch), policy) for batch in batches]
    assert [forms(each) for each in found[2:]] == [both, both]
    assert [forms(each) for each in found[:2]] == ([[both[-1]], [both[0]]])
    scheduler = scheduler_of(policy)
    rows = scheduler.decode_rows_for(1)
    assert {v for each in found for v in each.variants} == set(scheduler.captured(rows))
    assert set(scheduler.variants(rows)) == set(scheduler.captured(rows))
    assert scheduler.captured(rows, decodes_only=True) == scheduler.captured(rows)[-1:]
    assert schedule_of([], policy).variants == ()


def scheduler_of(policy: Policy) -> Scheduler:
    return Scheduler(layer_of(), replace(H100, arch=get_arch("sm_90a")), policy)


def run(plan: Plan, q: Any, k: Any, v: Any, order: int) -> tuple[Any, Any]:
    return execute_plan(plan, q, k, v, order=order)


@FAMILIES
@pytest.mark.parametrize("seed", range(6))
def test_walking_plans_gives_the_same_bits_alone_and_in_any_batch(family: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 7))
    batch = [
        (int(q_len), max(int(q_len), int(kv_len)))
        for q_len, kv_len in zip(
            rng.choice([1, 1, 2, 5, 40, 130], count), rng.integers(1, 1500, count), strict=True
        )
    ]
    layer = layer_of(num_kv_heads=2, group=4, head_dim=64)
    q = rng.standard_normal((sum(q_len for q_len, _ in batch), 8, 64))
    k, v = rng.standard_normal((2, count, max(kv_len for _, kv_len in batch), 2, 64))
    policy = Policy(family=family, deterministic=True)
    out, lse = run(schedule_of(batch, policy, layer).plan, q, k, v, seed)
    ends = np.cumsum([0, *(q_len for q_len, _ in batch)])
    for number, request in enumerate(batch):
        mine = slice(ends[number], ends[number + 1])
        plan = schedule_of([request], policy, layer, num_sms=50).plan
        keys = slice(number, number + 1)
        alone, alone_lse = run(plan, q[mine], k[keys], v[keys], seed + 1)
        assert alone.tobytes() == out[mine].tobytes()
        assert alone_lse.tobytes() == lse[mine].tobytes()


@pytest.mark.parametrize(
    "fixed",
    [
        {"autotuned": True},
        {"limit_splits": False},
        {"taper_decode": False},
        {"max_partial_bytes": 1 << 20},
    ],
)
def test_what_goes_by_all_of_a_batch_is_refused(fixed: dict[str, Any]) -> None:
    (name,) = fixed
    with pytest.raises(UnsupportedConfigError, match=f"{name}=.*deterministic=True"):
        Policy(deterministic=True, **fixed)
    with pytest.raises(UnsupportedConfigError, match=f"{name}=.*deterministic=True"):
        policy_of(Policy(**fixed), True)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="deterministic=1"):
        Policy(deterministic=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="deterministic='yes'"):
        policy_of("auto", "yes")  # type: ignore[arg-type]


def test_named_policies_can_be_made_deterministic() -> None:
    assert policy_of("hopper-serial", True) == Policy(
        family="hopper", serial=True, deterministic=True
    )
    assert policy_of(Policy(deterministic=True), False).deterministic
    assert "deterministic=True" in repr(policy_of("auto", True))


def test_what_is_fixed_still_holds() -> None:
    policy = Policy(
        family="hopper",
        deterministic=True,
        decode_rows=16,
        decode_piece_keys=2048,
        decode_only_sms=8,
        large_prefill_tile=True,
    )
    found = schedule_of([(1, 8192), (3, 8192), (600, 8192)], policy)
    assert found.plan.decode_rows == 16
    assert found.plan.decode_only_ctas == 8
    assert set(found.plan.decode["num_splits"].tolist()) == {4}
    assert set(found.plan.decode["request"].tolist()) == {0, 1}
    alone = schedule_of([(600, 8192)], replace(policy, serial=True, decode_only_sms=None))
    assert [variant.kv_tile for variant in alone.variants] == [176]  # type: ignore[union-attr]
    usual = schedule_of([(600, 8192)], Policy(family="hopper", serial=True, deterministic=True))
    assert [variant.kv_tile for variant in usual.variants] == [128]  # type: ignore[union-attr]


def test_a_reserved_decode_tile_is_that_of_ordinary_runs() -> None:
    """Or a graph's bits would not be those of a run."""
    scheduler = scheduler_of(Policy(deterministic=True))
    assert scheduler.decode_rows_for(1) == scheduler.decode_rows_for(2) == 8
    helps = (
        r'reserve at most 2, fix decode_rows=16 \(family="hopper"\), or leave out deterministic$'
    )
    with pytest.raises(
        UnsupportedConfigError, match=rf"max_decode_tokens=3: .*decode_rows=8 hold .*; {helps}"
    ):
        scheduler.decode_rows_for(3)
    with pytest.raises(UnsupportedConfigError, match="; reserve at most 2, or leave out determini"):
        scheduler.decode_rows_for(1000)
    wider = scheduler_of(Policy(family="hopper", deterministic=True, decode_rows=16))
    assert wider.decode_rows_for(3) == 16
    with pytest.raises(UnsupportedConfigError, match=r"leave out decode_rows and deterministic$"):
        wider.decode_rows_for(5)


@FAMILIES
def test_batches_are_explained(family: Any) -> None:
    policy = Policy(family=family, deterministic=True)
    for q_lens, kv_lens in (([1], [5000]), ([600], [600]), ([600, 1], [9000, 70]), ([], [])):
        found = explain(scheduler_of(policy), batch_of(q_lens, kv_lens))
        assert not q_lens or found.why == "deterministic: the same kernels whatever the batch"
        assert str(found)


#: What `docs/contract.md` says of the cost: a batch, the policy, and the most that it is predicted
#: to take, in terms of what it takes without the mode.
COSTS: list[tuple[list[Request], bool | None, float]] = [
    ([(2048, 16384)], None, 1.2),
    ([(2048, 16384)], True, 1.03),
    ([(512, 8192)], None, 1.2),
    ([(128, 32768)], None, 1.2),
    ([(1, 8192)] * 64, None, 1.07),
    ([(1, 1024)] * 256, None, 1.07),
    ([(1, 131072)], None, 1.07),
    ([(2048, 16384), *[(1, 8192)] * 64], None, 1.01),
    ([(512, 8192), *[(1, 8192)] * 64], None, 1.01),
]


@pytest.mark.parametrize(("batch", "serial", "most"), COSTS)
def test_the_predicted_cost_is_as_stated(
    batch: list[Request], serial: bool | None, most: float
) -> None:
    def predicted(policy: Policy) -> float:
        scheduler = scheduler_of(policy)
        return sum(each.time_us for each in scheduler.predict(schedule_of(batch, policy)))

    mode = Policy(family="hopper", serial=serial, deterministic=True)
    assert predicted(mode) <= most * predicted(Policy(family="hopper"))
