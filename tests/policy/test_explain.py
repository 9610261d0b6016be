"""A batch is explained: candidates, the choice, the rule."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from schedule_support import MIXED, batch_of, layer_of

from podrt.gpu.arch import get_arch
from podrt.gpu.device import DeviceInfo
from podrt.gpu.nominal import GPUS, H100, H200
from podrt.policy.calibration import is_measured
from podrt.policy.explain import Explanation, explain
from podrt.policy.policies import Policy, parse_policy
from podrt.policy.schedule import Scheduler

LONG = [2048, *[1] * 64], [16384, *[16384] * 64]


def explained(
    q_lens: list[int],
    kv_lens: list[int],
    policy: str | Policy = "auto",
    *,
    gpu: DeviceInfo = H100,
    head_dim: int = 128,
) -> Explanation:
    scheduler = Scheduler(layer_of(head_dim=head_dim), gpu, parse_policy(policy))
    return explain(scheduler, batch_of(q_lens, kv_lens))


@pytest.mark.parametrize("gpu", GPUS.values())
def test_the_choice_is_what_is_scheduled_and_one_of_the_candidates(gpu: DeviceInfo) -> None:
    found = explained(*LONG, gpu=gpu)
    scheduler = Scheduler(layer_of(), gpu, Policy())
    sms = scheduler.schedule(batch_of(*LONG)).plan.decode_only_ctas
    assert found.choice is not None
    assert found.choice.name == f"decode-only={sms}"
    assert f"{sms} SMs decode first" in found.why
    assert sum(each.is_chosen for each in found.candidates) == 1


def test_candidates_are_policies_the_fastest_first() -> None:
    found = explained(*LONG)
    times = [each.predicted_us for each in found.candidates]
    assert times == sorted(times)
    assert found.best == found.candidates[0]
    names = [each.name for each in found.candidates]
    assert len(set(names)) == len(names)
    assert {"serial", "decode-only=0", "prefill-only=8"} <= set(names)
    for name in names:
        parse_policy(name)
    assert all(each.limit in ("prefill", "decode", "bus") for each in found.candidates)


def test_serial_takes_what_the_sides_take() -> None:
    found = explained(*LONG)
    (serial,) = (each for each in found.candidates if each.name == "serial")
    assert serial.launches == 2
    assert serial.predicted_us == found.prefill_us + found.decode_us


@pytest.mark.parametrize(
    ("lengths", "policy", "name", "why"),
    [
        (LONG, "serial", "serial", "policy fixes a launch for each side"),
        (LONG, "decode-only=40", "decode-only=40", "policy fixes the shares"),
        (LONG, "prefill-only=5", "prefill-only=5", "policy fixes the shares"),
        (([8192], [8192]), "auto", "prefill alone", "one kind"),
        (([1] * 64, [8192] * 64), "auto", "decode alone", "one kind"),
        (([16384, 1], [16384, 1024]), "auto", "serial", "FusedForm.not_worth_hiding"),
        (
            ([2048, *[1] * 8], [16384, *[8192] * 8]),
            "auto",
            "prefill-only=16",
            "16 SMs take prefill first (SmSharing.prefill_first_share)",
        ),
        (([512, *[1] * 100], [4096, *[16384] * 100]), "auto", None, "no SMs take one side first"),
        (([1024, *[1] * 20], [4096, *[2048] * 20]), "auto", None, "prefill alone takes"),
        (MIXED, "portable", "4:1", "nearest"),
        (MIXED, "1:3", "1:3", "policy fixes the ratio"),
    ],
)
def test_the_rule_is_named(
    lengths: tuple[list[int], list[int]], policy: str, name: str | None, why: str
) -> None:
    found = explained(*lengths, policy)
    assert found.choice is not None
    assert name in (None, found.choice.name)
    assert why in found.why


def test_sms_for_the_longest_tiles_are_explained() -> None:
    found = explained([512, *[1] * 8], [4096, *[4096] * 8], gpu=H200)
    assert found.choice is not None
    assert found.choice.name.startswith("prefill-only=")
    assert "longest" in found.why


def test_what_else_a_policy_fixes_holds_for_all_candidates() -> None:
    free, by_length = (
        explained(*LONG, Policy(prefill_order=order, decode_only_sms=24, family="hopper"))
        for order in (None, "length")
    )
    times = [{each.name: each.predicted_us for each in one.candidates} for one in (free, by_length)]
    assert times[0].keys() == times[1].keys()
    assert times[0]["decode-only=48"] < times[1]["decode-only=48"]
    tapered = explained(*LONG, Policy(family="hopper", taper_decode=False))
    assert "serial" in [each.name for each in tapered.candidates]


@pytest.mark.parametrize(
    ("gpu", "head_dim"),
    [(replace(H100, name="A100", arch=get_arch("sm_80"), num_sms=108), 128)],
)
def test_the_portable_family_says_that_it_has_no_prediction(gpu: DeviceInfo, head_dim: int) -> None:
    found = explained(*MIXED, gpu=gpu, head_dim=head_dim)
    assert found.record is None
    assert found.best is None
    assert [each.predicted_us for each in found.candidates] == [None]
    assert "no prediction" in str(found)
    assert "portable" in str(found)


def test_a_gpu_without_a_record_is_predicted_as_the_likest_and_says_so() -> None:
    pcie = replace(H100, name="NVIDIA H100 PCIe", num_sms=114, memory_gbs=2039.0)
    assert [is_measured(gpu) for gpu in (H100, H200, pcie)] == [True, True, False]
    found = explained(*LONG, gpu=pcie)
    assert found.record == "NVIDIA H100"
    assert "likest GPU with a record" in str(found)
    assert "likest" not in str(explained(*LONG))


def test_text_has_every_candidate_and_marks_what_runs() -> None:
    found = explained(*LONG)
    lines = str(found).splitlines()
    for each in found.candidates:
        (line,) = (line for line in lines if line[2:].startswith(f"{each.name} "))
        assert line.startswith("*") == each.is_chosen
        assert f"{each.predicted_us:.1f}" in line
    assert "chosen by rule: decode-only=4; predicted best: " in str(found)
    assert "the prediction does not choose" in str(found)


def test_plain_values_can_be_written_as_json() -> None:
    found = json.loads(json.dumps(explained(*LONG).to_dict()))
    assert found["choice"] == "decode-only=4"
    assert found["predicted_best"] == found["candidates"][0]["name"]


def test_an_empty_batch_has_nothing_to_run() -> None:
    found = explained([], [])
    assert (found.candidates, found.choice, found.best) == ((), None, None)
    assert "nothing to run" in str(found)
