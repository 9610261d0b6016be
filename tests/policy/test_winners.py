"""What was measured to win in a bucket is what `Policy(autotuned=True)` runs there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from schedule_support import batch_of, layer_of
from store_support import own_store

from podrt.gpu.nominal import H100
from podrt.policy import store
from podrt.policy.buckets import Bucket, bucket_of, layer_name
from podrt.policy.explain import explain
from podrt.policy.policies import Policy
from podrt.policy.schedule import Schedule, Scheduler
from podrt.policy.winners import Trial, load_trials, save_trials
from podrt.spec.attention import AttentionSpec

__all__ = ["own_store"]
pytestmark = pytest.mark.usefixtures("own_store")

LONG = [2048, *[1] * 64], [16384, *[8192] * 64]
ALIKE = [1900, *[1] * 70], [17000, *[7800] * 70]
UNLIKE = [512, *[1] * 64], [4096, *[4096] * 64]
TIMES_US = {"auto": 100.0, "serial": 120.0, "decode-only=24": 90.0, "decode-only=8": 95.0}


def keep(times_us: dict[str, float], layer: AttentionSpec | None = None) -> Trial:
    bucket = bucket_of(batch_of(*LONG))
    assert bucket is not None
    name = layer_name(layer or layer_of(), "hopper")
    trial = Trial(name, bucket, "2048@16384 + 64x8192", times_us)
    save_trials(H100, [trial])
    store.forget()
    return trial


def scheduler(**fixed: object) -> Scheduler:
    return Scheduler(layer_of(), H100, Policy(autotuned=True, **fixed))  # type: ignore[arg-type]


def same(one: Schedule, other: Schedule) -> bool:
    shares = [
        (each.plan.decode_only_ctas, each.plan.prefill_only_ctas, len(each.plan.decode))
        for each in (one, other)
    ]
    return one.variants == other.variants and shares[0] == shares[1]


def by(policy: Policy, lengths: tuple[list[int], list[int]] = LONG) -> Schedule:
    return Scheduler(layer_of(), H100, policy).schedule(batch_of(*lengths))


def test_buckets_are_steps_of_the_square_root_of_two() -> None:
    assert str(bucket_of(batch_of(*LONG))) == "2048@16384 + 64x8192"
    assert bucket_of(batch_of(*ALIKE)) == bucket_of(batch_of(*LONG))
    assert bucket_of(batch_of(*UNLIKE)) != bucket_of(batch_of(*LONG))
    assert bucket_of(batch_of([1, 3, 1, 5], [8, 64, 8, 64])) == Bucket(6, 12, 2, 6)


def test_many_short_prompts_are_not_one_long_one() -> None:
    short = batch_of([*[256] * 8, 1], [*[256] * 8, 1000])
    assert str(bucket_of(short)) == "2048@256 + 1x1024"


def test_the_keys_of_large_batches_do_not_overflow() -> None:
    large = batch_of([100_000, *[1] * 3000], [1_000_000, *[1_000_000] * 3000])
    assert str(bucket_of(large)) == "92682@1048576 + 2896x1048576"


@pytest.mark.parametrize("q_lens", [[], [1, 1], [8, 8], [0, 1], [0, 0]])
def test_a_batch_of_one_kind_has_no_bucket(q_lens: list[int]) -> None:
    assert bucket_of(batch_of(q_lens, [64] * len(q_lens))) is None


def test_a_batch_without_keys_has_no_bucket() -> None:
    assert bucket_of(batch_of([5, 1], [0, 9])) is None
    assert bucket_of(batch_of([5, 1], [9, 0])) is None


@pytest.mark.parametrize("lengths", [LONG, ALIKE])
def test_the_winner_runs_in_its_bucket(lengths: tuple[list[int], list[int]]) -> None:
    keep(TIMES_US)
    found = scheduler().schedule(batch_of(*lengths))
    assert same(found, by(Policy(family="hopper", decode_only_sms=24), lengths))
    assert found.plan.decode_only_ctas == 24


def test_rules_hold_elsewhere_and_without_the_switch() -> None:
    keep(TIMES_US)
    assert same(scheduler().schedule(batch_of(*UNLIKE)), by(Policy(), UNLIKE))
    assert by(Policy()).trial is None
    assert by(Policy()).plan.decode_only_ctas != 24
    other = Scheduler(layer_of(num_kv_heads=4), H100, Policy(autotuned=True))
    assert other.schedule(batch_of(*LONG)).trial is None


def test_without_measurements_all_is_as_by_rule() -> None:
    for lengths in (LONG, UNLIKE, ([1, 1], [5, 5]), ([9], [9])):
        assert same(scheduler().schedule(batch_of(*lengths)), by(Policy(), lengths))


def test_less_than_one_per_cent_is_no_win() -> None:
    trial = keep({"auto": 100.0, "decode-only=24": 99.5})
    assert trial.winner() == "auto"
    found = scheduler().schedule(batch_of(*LONG))
    assert same(found, by(Policy()))
    assert found.trial == trial


def test_launches_apart_may_win_but_not_in_a_graph() -> None:
    trial = keep({**TIMES_US, "serial": 70.0})
    assert (trial.winner(), trial.winner(fused=True)) == ("serial", "decode-only=24")
    tuned = scheduler()
    apart = tuned.schedule(batch_of(*LONG))
    assert [each.form for each in apart.variants] == ["prefill", "decode"]
    rows = tuned.decode_rows_for(1)
    reserved = tuned.schedule(batch_of(*LONG), decode_rows=rows)
    assert reserved.variants == tuned.captured(rows)
    assert reserved.plan.decode_only_ctas == 24


def test_what_else_is_fixed_holds() -> None:
    keep(TIMES_US)
    fixed = {"family": "hopper", "decode_rows": 16, "prefill_order": "length"}
    found = scheduler(**fixed).schedule(batch_of(*LONG))
    wanted = by(Policy(decode_only_sms=24, **fixed))  # type: ignore[arg-type]
    assert same(found, wanted)
    assert found.plan.prefill.tolist() == wanted.plan.prefill.tolist()


def test_another_family_knows_nothing_of_it() -> None:
    keep(TIMES_US)
    portable = scheduler(family="portable").schedule(batch_of(*LONG))
    assert portable.trial is None
    assert portable.base.family == "portable"


def test_explain_names_the_measurement() -> None:
    keep(TIMES_US)
    found = explain(scheduler(), batch_of(*LONG))
    assert found.choice is not None
    assert found.choice.name == "decode-only=24"
    text = str(found)
    assert "chosen by measurement: decode-only=24" in text
    assert "measured winner of bucket 2048@16384 + 64x8192 (hopper 32/8 d128 bfloat16" in text
    assert "decode-only=24, 90 us, the rule 100" in text
    keep({"auto": 100.0, "serial": 101.0})
    rule = explain(scheduler(), batch_of(*LONG))
    assert "the rule, 100 us" in rule.why


def test_trials_are_kept_beside_those_of_other_buckets_and_replaced() -> None:
    first = keep(TIMES_US)
    other = replace(first, bucket=Bucket(1, 2, 3, 4))
    save_trials(H100, [other])
    again = keep({**TIMES_US, "auto": 80.0})
    assert sorted(load_trials(H100), key=lambda each: each.bucket) == [other, again]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("times_us", {}),
        ("times_us", {"auto": 0}),
        ("times_us", {"auto": "fast"}),
        ("times_us", {"auto": 1.0, "1:3": 1.0}),
        ("times_us", {"auto": 1.0, "rm": 1.0}),
        ("layer", "volta 32/8"),
        ("bucket", [1, 2]),
        ("bucket", None),
    ],
)
def test_a_bad_file_is_ignored_with_a_warning(name: str, value: object) -> None:
    keep(TIMES_US)
    path = store.require_path("winners", H100)
    record = json.loads(path.read_text())
    record["content"]["trials"][0][name] = value
    path.write_text(json.dumps(record))
    with pytest.warns(RuntimeWarning, match="are ignored"):
        assert scheduler().schedule(batch_of(*LONG)).trial is None
