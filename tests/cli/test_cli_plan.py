"""``podrt plan``."""

from __future__ import annotations

import pytest
from cli_support import run, run_json

from podrt.cli import _layer
from podrt.gpu.device import DeviceError
from podrt.gpu.nominal import GPUS
from podrt.policy.policies import parse_policy

BATCH = "2048@16384 + 64x16384"
TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "0,1500,40\n" * 40


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "busy.csv"
    path.write_text(TRACE)
    return path


@pytest.mark.parametrize("gpu", GPUS)
def test_json_has_candidates_choice_and_reason(gpu):
    (found,) = run_json("plan", BATCH, "--gpu", gpu, "--heads", "32/8", "--head-dim", "128")
    assert found["name"] == BATCH
    assert found["gpu"] == GPUS[gpu].name
    names = [each["name"] for each in found["candidates"]]
    assert found["choice"] in names
    assert found["predicted_best"] == names[0]
    assert "of decode" in found["why"]
    assert all(parse_policy(name) for name in names)


def test_gpus_differ():
    slow, fast = (run_json("plan", "64x16384", "--gpu", gpu)[0] for gpu in ("h100", "h200"))
    assert fast["candidates"][0]["predicted_us"] < 0.75 * slow["candidates"][0]["predicted_us"]


def test_batches_of_a_trace(trace):
    found = run_json("plan", "--trace", trace, "--budget", 256, "--batches", 3, "--gpu", "h100")
    assert [each["name"] for each in found] == ["busy #0", "busy #1", "busy #2"]
    assert all(each["predicted_best"] for each in found)
    text = run("plan", "--trace", trace, "--budget", 256, "--batches", 3, "--gpu", "h100")
    assert text.count("chosen by rule") == 3


@pytest.mark.parametrize(
    "command",
    [["plan"], ["demo"], ["tune"], ["explore", "sweep", "--axis", "family=hopper"]],
    ids=" ".join,
)
def test_a_trace_that_cannot_be_read_is_named(tmp_path, command):
    path = tmp_path / "missing.csv"
    for said in ("No such file or directory; pass a file that can be read", "expected text in UT"):
        with pytest.raises(ValueError, match=f"^--trace {path}: {said}"):
            run(*command, "--trace", path)
        path.write_bytes(b"\xff")


def test_windows_leave_out_what_they_hide():
    (whole,) = run_json("plan", BATCH, "--gpu", "h100")
    (found,) = run_json("plan", BATCH, "--gpu", "h100", "--window-left", 1024)
    assert found["candidates"][0]["predicted_us"] < 0.2 * whole["candidates"][0]["predicted_us"]
    (capped,) = run_json("plan", BATCH, "--gpu", "h100", "--soft-cap", 50)
    assert capped["choice"]


def test_policy_layer_and_pages_are_taken():
    (found,) = run_json("plan", BATCH, "--gpu", "h100", "--policy", "serial", "--page-size", 0)
    assert found["choice"] == "serial"
    (found,) = run_json("plan", BATCH, "--gpu", "h100", "--heads", "8/1", "--dtype", "float16")
    assert "128 units of prefill" in found["batch"]


@pytest.mark.parametrize("options", [["--heads", "256/1"], ["--policy", "portable"]])
def test_portable_batches_have_no_prediction(options):
    text = run("plan", BATCH, "--gpu", "h100", *options)
    assert "no prediction: the cost model knows the Hopper family alone" in text
    (found,) = run_json("plan", BATCH, "--gpu", "h100", *options)
    assert found["record"] is None
    assert found["candidates"][0]["predicted_us"] is None


def test_without_a_gpu_it_plans_for_an_h100(monkeypatch):
    def absent():
        raise DeviceError("no GPU")

    monkeypatch.setattr(_layer, "current_device", absent)
    assert run_json("plan", BATCH)[0]["gpu"] == GPUS["h100"].name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass a batch"),
        ([BATCH, "--gpu", "h300"], "h100 or h200"),
        ([BATCH, "--heads", "32"], "such as 32/8"),
        (["x"], "is not a part of one"),
        ([BATCH, "--policy", "fast"], "allowed are"),
        ([BATCH, "--dtype", "float8"], "allowed are"),
    ],
)
def test_refuses_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        run("plan", *arguments)


def test_batch_and_trace_exclude_each_other(trace):
    with pytest.raises(ValueError, match=r"--trace .*: pass one of them, not both"):
        run("plan", BATCH, "--trace", trace)


def test_keys_that_decodes_share_are_read_once():
    alone, shared = (
        run_json("plan", "1024@8192 + 64x17000", "--gpu", "h100", *more)[0]
        for more in ([], ["--shared-keys", 16384])
    )
    best = [found["candidates"][0]["predicted_us"] for found in (alone, shared)]
    assert best[1] < 0.25 * best[0]
    assert "64 tokens share a prefix" in shared["note"]
    assert "share a prefix" not in alone["note"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1024@8192"], "has 0 decodes; expected two or more"),
        (["1x500 + 8@600 + 2x500"], "has 3 decodes; expected two or more, one after another"),
        (["2x500", "--window-left", 64], "the layer has window_left=64"),
        (["2x500", "--page-size", "none"], "use a paged cache"),
        (["2x500", "--page-size", 48], "whole pages of 48"),
        (["2x300"], "at most 299 can be shared"),
    ],
)
def test_decodes_that_cannot_share_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^--shared-keys 320: .*{message}"):
        run("plan", *arguments, "--gpu", "h100", "--shared-keys", 320)


def test_batches_of_a_trace_share_nothing(trace):
    with pytest.raises(ValueError, match="--shared-keys 320: is for a batch"):
        run("plan", "--trace", trace, "--gpu", "h100", "--shared-keys", 320)
