"""What the cost model predicts, against what is committed of an H100 and of an H200."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from cost_support import GPUS, Measurement, allocations, held_out, measurements
from schedule_support import MIXED, layer_of, scheduled

from podrt.gpu.nominal import H100
from podrt.policy.calibration import calibration_of
from podrt.policy.cost import Prediction, predict
from podrt.policy.policies import Policy
from podrt.policy.schedule import Schedule, Scheduler

ALONE = ("prefill alone", "decode alone")
HOPPER = Policy(family="hopper")


def predictions(found: Schedule, gpu: str = "h100") -> tuple[Prediction, ...]:
    device = GPUS[gpu]
    return predict(found.plan, found.variants, device, calibration_of(device))


def predicted_us(found: Schedule, gpu: str = "h100") -> float:
    return sum(each.time_us for each in predictions(found, gpu))


def geomean(ratios: Iterable[float]) -> float:
    return math.exp(np.mean([math.log(ratio) for ratio in ratios]))


def errors(rows: Iterable[Measurement], gpu: str) -> list[float]:
    """By what factor each row is off, 1 or more."""
    ratios = [predicted_us(row.schedule, gpu) / row.time_us for row in rows]
    return [max(ratio, 1 / ratio) for ratio in ratios]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("forms", [["pod"], ["prefill"], ["decode"], ["prefill", "decode"]])
def test_predictions_are_near_what_was_measured(gpu: str, forms: list[str]) -> None:
    rows = [
        row
        for row in measurements(gpu)
        if [variant.form for variant in row.schedule.variants] == forms
    ]
    assert len(rows) >= 14
    found = errors(rows, gpu)
    assert geomean(found) <= 1.04  # 1.15 is asked for; `design/cost-model.md` has what came
    assert max(found) <= 1.16


@pytest.mark.parametrize("orders", [("old",), ("new",), ("old", "new")])
def test_its_choice_of_what_was_measured_costs_little(orders: tuple[str, ...]) -> None:
    cases: dict[str, list[tuple[float, float]]] = {}
    for row in allocations():
        if row.contender.endswith(orders):
            found = predicted_us(row.schedule), row.time_us
            cases.setdefault(row.case, []).append(found)
    assert len(cases) == 6
    regrets = [min(rows)[1] / min(time_us for _, time_us in rows) for rows in cases.values()]
    assert geomean(regrets) <= 1.03


def test_predictions_hold_for_what_was_measured_after_the_fit() -> None:
    rows = held_out()
    assert len(rows) >= 250
    found = errors(rows, "h100")
    assert geomean(found) <= 1.04
    assert max(found) <= 1.22  # 8/1: `design/cost-model.md`, "Since prefill is faster"


def test_its_choice_holds_for_what_was_measured_after_the_fit() -> None:
    cases: dict[str, list[tuple[float, float]]] = {}
    for row in held_out():
        if row.contender == "auto" or "-only=" in row.contender:
            cases.setdefault(row.case, []).append((predicted_us(row.schedule), row.time_us))
    choices = [rows for rows in cases.values() if len(rows) > 2]
    assert len(choices) == 23
    regrets = [min(rows)[1] / min(time_us for _, time_us in rows) for rows in choices]
    assert geomean(regrets) <= 1.015
    assert max(regrets) <= 1.06


@pytest.mark.parametrize("gpu", GPUS)
def test_it_knows_when_one_launch_beats_two(gpu: str) -> None:
    cases: dict[str, dict[str, Measurement]] = {}
    for row in measurements(gpu):
        if row.contender in ("auto", "serial"):
            cases.setdefault(row.case, {})[row.contender] = row
    pairs = [each for each in cases.values() if len(each) == 2]
    assert len(pairs) >= 14
    for pair in pairs:
        best = min(pair.values(), key=lambda row: predicted_us(row.schedule, gpu))
        assert best.time_us <= 1.03 * min(row.time_us for row in pair.values())


def hopper(q_lens: list[int], kv_lens: list[int], **fixed: object) -> Schedule:
    return scheduled(q_lens, kv_lens, policy=Policy(family="hopper", **fixed))


def test_more_work_takes_longer_on_either_side() -> None:
    base, more = [2048, *[1] * 64], [16384, *[8192] * 64]
    least = predicted_us(hopper(base, more))
    assert predicted_us(hopper([*base, *[1] * 64], [*more, *[8192] * 64])) > least
    assert predicted_us(hopper([*base, 4096], [*more, 16384])) > least


def test_wider_heads_take_longer_whether_or_not_they_were_measured() -> None:
    """On either side; 64 and 128 were."""
    for q_lens, kv_lens in (([2048], [16384]), ([1] * 64, [8192] * 64)):
        times_us = [
            predicted_us(scheduled(q_lens, kv_lens, HOPPER, layer=layer_of(head_dim=head_dim)))
            for head_dim in (64, 80, 96, 112, 128, 192, 256)
        ]
        assert times_us == sorted(times_us)
        assert times_us[-1] > 2 * times_us[0]
        narrow = scheduled(q_lens, kv_lens, HOPPER, layer=layer_of(head_dim=192, v_head_dim=128))
        assert times_us[4] < predicted_us(narrow) < times_us[5]


@pytest.mark.parametrize(
    ("q_lens", "kv_lens"), [([2048], [16384]), ([2048] + [1] * 64, [16384] * 65)]
)
def test_gathered_rows_take_as_long_as_measured(q_lens: list[int], kv_lens: list[int]) -> None:
    results = Path(__file__).parents[2] / "bench/results/h100/features-pages.json"
    name = "/2048@16384" + " + 64x16384" * (len(q_lens) > 1)
    measured = {
        row["page_size"]: row["time_us"]
        for row in json.loads(results.read_text())["rows"]
        if row["case"].endswith(name) and row["policy"] == "auto"
    }
    for page_size in (1, 4, 16):
        found = scheduled(q_lens, kv_lens, layer=layer_of(page_size))
        assert predicted_us(found) == pytest.approx(measured[page_size], rel=0.08)


def test_a_fused_launch_takes_longer_than_either_side_and_less_than_both() -> None:
    q_lens, kv_lens = [2048, *[1] * 64], [16384, *[16384] * 64]
    fused = predicted_us(hopper(q_lens, kv_lens))
    sides = [each.time_us for each in predictions(hopper(q_lens, kv_lens, serial=True))]
    assert max(sides) < fused < sum(sides)


def test_what_a_launch_waits_for() -> None:
    def limits(*lengths: list[int], gpu: str = "h100", **fixed: object) -> list[str]:
        return [each.limit for each in predictions(hopper(*lengths, **fixed), gpu)]

    assert limits([8192], [8192]) == ["prefill"]
    assert limits([1] * 64, [16384] * 64) == ["bus"]
    assert limits([8192, 1], [8192, 1024]) == ["prefill"]
    assert limits([512, *[1] * 64], [4096, *[16384] * 64]) == ["bus"]
    both = [2048, *[1] * 64], [16384, *[16384] * 64]
    assert limits(*both, gpu="h200", prefill_only_sms=64) == ["decode"]


def test_prefill_by_length_reads_its_keys_again_and_takes_longer_for_it() -> None:
    lengths = [2048, *[1] * 64], [16384, *[16384] * 64]
    by_head, by_length = (
        predicted_us(hopper(*lengths, decode_only_sms=16, prefill_order=order))
        for order in ("head", "length")
    )
    assert by_length > 1.05 * by_head


@pytest.mark.parametrize(
    "fixed",
    [
        {"decode_only_sms": 132},
        {"prefill_only_sms": 132},
        {"decode_only_sms": 200, "prefill_only_sms": 200},
        {"decode_only_sms": 100, "prefill_only_sms": 100},
        {"serial": True},
    ],
)
def test_whatever_is_fixed_has_a_finite_time(fixed: dict[str, int]) -> None:
    for lengths in (([2048, *[1] * 64], [16384] * 65), ([4, 900, 1], [4, 1000, 1]), MIXED):
        assert 0 < predicted_us(hopper(*lengths, **fixed)) < 1e5


def test_a_side_without_keys_takes_a_launch() -> None:
    assert 0 < predicted_us(hopper([300, 1], [0, 0])) < 100


def test_only_the_hopper_family_has_a_model() -> None:
    for family, launches in (("portable", 0), ("hopper", 1)):
        policy = Policy(family=family)
        found = Scheduler(layer_of(), H100, policy).predict(scheduled(*MIXED, policy=policy))
        assert len(found) == launches


def test_more_bandwidth_makes_decode_faster() -> None:
    found = hopper([1] * 64, [16384] * 64)
    slow, fast = (predicted_us(found, gpu) for gpu in GPUS)
    assert fast < 0.75 * slow
