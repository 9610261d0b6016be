"""``podrt explore sweep``: lists, replays, exports without a GPU; measures with a pretended one."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import run, run_json
from sweep_support import ENVIRONMENT, FakeBench
from typer.testing import CliRunner

import podrt
from podrt import cli
from podrt.bench.sweep.records import load
from podrt.cli import explore_sweep
from podrt.gpu.nominal import H100

EXAMPLE = Path(__file__).resolve().parents[1] / "data" / "sweep.jsonl"
SMALL = [
    "--axis",
    "family=hopper",
    "--axis",
    "decode_only_sms=0,8",
    "--batch",
    "512@4096 + 16x4096",
]


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU; return what runs on it."""
    bench = FakeBench()
    monkeypatch.setattr(explore_sweep, "current_device", lambda: H100)
    monkeypatch.setattr(explore_sweep, "gpu_bench", lambda case: bench.open(case))
    monkeypatch.setattr(explore_sweep, "gpu_error", lambda: None)
    monkeypatch.setattr(explore_sweep, "_environment", lambda device, definition: ENVIRONMENT)
    monkeypatch.setattr(explore_sweep, "_compile", lambda points: None)
    return bench


def test_a_list_says_what_would_be_measured_and_what_not():
    lines = run("explore", "sweep", *SMALL, "--axis", "prefill_tile_keys=96,176", "--list").split(
        "\n"
    )
    assert "512@4096 + 16x4096: hopper decode_only_sms=8 prefill_tile_keys=96" in lines
    skipped = [line for line in lines if line.startswith("skipped")]
    assert len(skipped) == 2
    assert all("bytes of shared memory in a CTA" in line for line in skipped)


def test_values_may_be_narrower_than_keys():
    layer = ["--batch", "64@64 + 2x200", "--head-dim", "192", "--v-head-dim", "64"]
    text = run("explore", "sweep", "--axis", "family=hopper,portable", *layer, "--list")
    assert "\n64@64 + 2x200: portable\n" in text
    assert "v_head_dim=64; with head_dim=192 allowed are 128, 192" in text


def test_replay_shows_everything_without_a_gpu(tmp_path):
    pytest.importorskip("matplotlib")
    text = run(
        "explore",
        "sweep",
        "--replay",
        EXAMPLE,
        "--figures",
        tmp_path / "f",
        "--export",
        tmp_path / "a.md",
        "--export",
        tmp_path / "a.csv",
    )
    for words in (
        "auto us",
        "time / auto",
        "values of axes",
        "not ranked",
        "made up",
        "allocation over decode share",
        "prefill length over decode batch",
        "skipped",
    ):
        assert words in text
    assert {path.name for path in (tmp_path / "f").iterdir()} == {
        f"{name}.{ending}"
        for name in (
            "allocation-over-decode-share",
            "prefill-length-over-decode-batch",
            "ratio-over-decode-share",
            "roofline",
        )
        for ending in ("png", "svg")
    }
    assert (tmp_path / "a.md").exists()
    assert (tmp_path / "a.csv").exists()


def test_other_maps():
    text = run("explore", "sweep", "--replay", EXAMPLE, "--map", "family")
    assert "family over decode share" in text
    assert "allocation over decode share" not in text


def test_a_roofline_of_a_sweep(tmp_path):
    points = run_json("explore", "roofline", EXAMPLE)
    assert {point["policy"] for point in points} > {"auto", "serial", "hopper decode_only_sms=16"}
    assert {p["policy"] for p in run_json("explore", "roofline", EXAMPLE, "--policy", "auto")} == {
        "auto"
    }
    with pytest.raises(ValueError, match="variant='atuo': not measured; try auto"):
        run("explore", "roofline", EXAMPLE, "--policy", "auto", "--policy", "atuo")
    with pytest.raises(ValueError, match=r"'a.txt': must end with one of .png, .svg, .pdf"):
        run("explore", "roofline", EXAMPLE, "--plot", "a.txt")


def test_a_file_without_records_is_said(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty.jsonl: has no records; measure some"):
        run("explore", "sweep", "--replay", tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="sweep: has no results"):
        run("explore", "roofline", tmp_path / "empty.jsonl")


def test_what_cannot_be_written_or_drawn_is_refused_before_it_is_measured(gpu, tmp_path):
    path = tmp_path / "s.jsonl"
    for options in (["--export", "a.txt"], ["--map", "famly"]):
        with pytest.raises(ValueError, match=r"must end with|try family"):
            run("explore", "sweep", *SMALL, "--out", path, *options)
    assert not path.exists()


def test_a_sweep_is_measured_resumed_and_interrupted(gpu, tmp_path):
    path = tmp_path / "s.jsonl"
    gpu.stop_at = "512@4096 + 16x4096", "hopper decode_only_sms=8"
    text = run("explore", "sweep", *SMALL, "--out", path, exit_code=3)
    assert load(path).results == ()
    gpu.stop_at = None
    text = run("explore", "sweep", *SMALL, "--out", path)
    assert "hopper decode_only_sms=8" in text
    assert len(load(path).results) == 6
    gpu.log.clear()
    run("explore", "sweep", *SMALL, "--batch", "100@100 + 2x50", "--out", path)
    assert {case for _, case, _ in gpu.log} == {"100@100 + 2x50"}


def test_a_wrong_variant_is_shown_as_wrong(gpu, tmp_path):
    gpu.errors["hopper decode_only_sms=8"] = 0.3
    result = CliRunner().invoke(cli.app, ["explore", "sweep", *SMALL, "--out", str(tmp_path / "s")])
    assert result.exit_code == 0
    assert "hopper decode_only_sms=8 on 512@4096 + 16x4096: wrong, error 0.3" in result.stderr
    assert "not ranked" in result.stdout


def test_random_and_samples(gpu, tmp_path):
    axes = ["--axis", "family=hopper", "--axis", "decode_only_sms=0,1,2,3,4,5,6,7,8,9"]
    options = [*axes, "--batch", "512@4096 + 16x4096", "--random", 3, "--seed", 7, "--samples", 2]
    run("explore", "sweep", *options, "--out", tmp_path / "s.jsonl")
    results = load(tmp_path / "s.jsonl").results
    assert len(results) == 4 + 3
    assert {len(result.samples_us) for result in results} == {2}


def test_batches_of_a_suite_or_a_trace():
    axes = ["--axis", "serial=true", "--list"]
    lines = run("explore", "sweep", *axes, "--suite", "traces", "--only", "#0").splitlines()
    assert lines
    assert all("#0: " in line for line in lines)
    trace = Path(podrt.__file__).parent / "data" / "sample_trace.csv"
    lines = run("explore", "sweep", *axes, "--trace", trace, "--batches", 2).splitlines()
    assert sum(line.endswith(": auto") for line in lines) == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "pass a definition .*h100.* axes are family"),
        (["h1000"], "there is no h1000.toml here; allowed are"),
        (["h100", "--axis", "serial=true"], "not both"),
        (["--axis", "decode_sms=1", "--batch", "9"], "try decode_"),
        (["--axis", "serial=true", "--batch", "9@1"], "must have 1 <= tokens <= keys"),
        (["--axis", "serial=true", "--batch", "9", "--gpu", "h100"], "--gpu: is for --list"),
        (["--replay", str(EXAMPLE), "--list"], "--replay: shows a file"),
        (["--replay", str(EXAMPLE), "--map", "alocation"], "try allocation"),
        (["--replay", str(EXAMPLE), "--export", "a.txt"], "must end with"),
    ],
)
def test_what_cannot_be_is_said(options, reason):
    with pytest.raises(ValueError, match=reason):
        run("explore", "sweep", *options)


def test_a_broken_file_is_named(tmp_path, gpu):
    path = tmp_path / "broken.jsonl"
    path.write_text(EXAMPLE.read_text().replace('"ok"', '"fine"', 1))
    for options in (["--replay", path], [*SMALL, "--out", path]):
        with pytest.raises(ValueError, match=r"broken.jsonl, line \d+: no record"):
            run("explore", "sweep", *options)
