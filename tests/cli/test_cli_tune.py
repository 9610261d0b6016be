"""``podrt tune`` on a GPU that is not there."""

from __future__ import annotations

import pytest
from cli_support import run, run_json
from tune_support import OTHER, fake_measure

from podrt.errors import DeviceError
from podrt.gpu.nominal import H100
from podrt.policy import store
from podrt.policy.calibration import record_of, shipped_for
from podrt.policy.winners import load_trials
from podrt.tune.launches import designed_cases

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """An H100 with other constants, and kernels that need no compiling."""
    monkeypatch.setattr(store, "driver_version", lambda: "580.1")
    monkeypatch.setattr(store, "_read", {})
    monkeypatch.setattr("podrt.cli.tune.current_device", lambda: H100)
    monkeypatch.setattr("podrt.cli.tune.build_all", lambda variants: None)
    monkeypatch.setattr("podrt.cli.tune.designed_cases", lambda: designed_cases()[::3])
    monkeypatch.setattr("podrt.cli.tune.measure_policies", fake_measure(OTHER))
    return monkeypatch


def test_a_record_is_kept_and_used_from_then_on():
    text = run("tune")
    assert "read_gbs, head_dim 128" in text
    assert "Kept in " in text
    store.forget()
    assert record_of(H100).kind == "tuned"
    assert record_of(H100).calibration.launch_costs.read_gbs[1] == pytest.approx(2100, rel=0.05)


def test_a_dry_run_keeps_nothing(empty_cache):
    found = run_json("tune", "--dry-run")
    assert found["is_better"]
    assert found["kept"] is None
    assert found["error"] < found["shipped_error"]
    assert not empty_cache.exists()


def test_what_is_no_better_is_not_kept(gpu, empty_cache):
    shipped = fake_measure(shipped_for(H100).launch_costs, noise=0.0)
    gpu.setattr("podrt.cli.tune.measure_policies", shipped)
    assert "the shipped record predicts better" in run("tune")
    assert not empty_cache.exists()


def test_without_a_gpu_it_says_so(gpu):
    def no_gpu():
        raise DeviceError("there is no GPU")

    gpu.setattr("podrt.cli.tune.current_device", no_gpu)
    with pytest.raises(DeviceError, match="no GPU"):
        run("tune")


def test_without_a_place_to_keep_it_nothing_is_measured(gpu):
    gpu.setenv("PODRT_DISABLE_CACHE", "1")
    gpu.setattr("podrt.cli.tune.measure_policies", None)
    from podrt import knobs

    with knobs.scope(disable_cache=True), pytest.raises(store.NoStoreError, match="PODRT_"):
        run("tune")


def test_winners_of_shapes_are_kept_and_used(tmp_path):
    shapes = tmp_path / "shapes.txt"
    shapes.write_text("2048@16384 + 64x8192\n512@4096 + 64x4096\n64x4096\n")
    found = run_json("tune", "--shapes", shapes, "--heads", "32/8")
    assert [each["batch"] for each in found["trials"]] == [
        "2048@16384 + 64x8192",
        "512@4096 + 64x4096",
    ]
    store.forget()
    trials = load_trials(H100)
    assert [each.winner() for each in trials] == [each["winner"] for each in found["trials"]]
    text = run("tune", "--shapes", shapes)
    assert "3 batches in 2 buckets of hopper 32/8 d128 bfloat16 page16" in text
    assert "used by Policy(autotuned=True)" in " ".join(text.split())


def test_layers_of_narrower_values_have_winners_of_their_own(tmp_path):
    shapes = tmp_path / "shapes.txt"
    shapes.write_text("512@4096 + 64x4096\n")
    layer = ("--heads", "16/16", "--head-dim", "192", "--v-head-dim", "128")
    text = run("tune", "--shapes", shapes, *layer, "--dry-run")
    assert "1 buckets of hopper 16/16 d192v128 bfloat16 page16" in text


def test_winners_of_a_trace(tmp_path, empty_cache):
    trace = tmp_path / "busy.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "0,1500,40\n" * 40)
    found = run_json("tune", "--trace", trace, "--budget", 256, "--batches", 6, "--dry-run")
    assert 1 <= len(found["trials"]) <= 6
    assert found["kept"] is None
    assert not empty_cache.exists()


def test_what_has_nothing_to_choose_is_refused(tmp_path):
    shapes = tmp_path / "shapes.txt"
    shapes.write_text("64x4096\n")
    with pytest.raises(ValueError, match="nothing to choose"):
        run("tune", "--shapes", shapes)
    with pytest.raises(ValueError, match="not both"):
        run("tune", "--shapes", shapes, "--trace", shapes)
