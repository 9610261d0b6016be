"""Timelines, simulated ones, and the command."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from cli_support import run, run_json
from schedule_support import scheduled

from podrt.bench.case import Case
from podrt.bench.sweep.page.trace import read_trace
from podrt.errors import UnsupportedConfigError
from podrt.explore.record import TracedRun, read_record
from podrt.explore.timeline import Dry, Span, Timeline, plot_timeline, simulate
from podrt.gpu.nominal import H100
from podrt.policy.calibration import calibration_of
from podrt.policy.cost import predict
from podrt.policy.policies import Policy

BATCH = "2048@16384 + 64x16384"
LENGTHS = [2048, *[1] * 64], [16384, *[16384] * 64]


@pytest.mark.parametrize("policy", ["auto", "serial", "decode-only=24", "prefill-only=24"])
def test_a_timeline_ends_when_the_model_says(policy: str) -> None:
    fixed = {
        "auto": {},
        "serial": {"serial": True},
        "decode-only=24": {"decode_only_sms": 24},
        "prefill-only=24": {"prefill_only_sms": 24},
    }[policy]
    schedule = scheduled(*LENGTHS, policy=Policy(family="hopper", **fixed))
    timeline = simulate(schedule, H100)
    calibration = calibration_of(H100)
    launches = predict(schedule.plan, schedule.variants, H100, calibration)
    predicted_us = sum(launch.time_us for launch in launches)
    # Without starting and merging; and a launch that the bus bounds is predicted to end with it.
    assert 0.85 * predicted_us < timeline.end_us < 1.05 * predicted_us
    units = [span for span in timeline.spans if span.role == "prefill"]
    assert len(units) == len(schedule.plan.prefill) * schedule.plan.num_kv_heads


def test_no_role_does_two_things_at_once() -> None:
    timeline = simulate(scheduled(*LENGTHS), H100)
    by_row: dict[tuple[int, str], list[Span]] = {}
    for span in timeline.spans:
        assert 0 <= span.sm < 132
        assert 0 <= span.begin_us < span.end_us
        by_row.setdefault((span.sm, span.role), []).append(span)
    for spans in by_row.values():
        spans.sort(key=lambda span: span.begin_us)
        for one, next_one in pairwise(spans):
            assert one.end_us <= next_one.begin_us + 1e-6


def test_serial_launches_follow_each_other() -> None:
    timeline = simulate(scheduled(*LENGTHS, policy=Policy(serial=True)), H100)
    last_prefill_us = max(s.end_us for s in timeline.spans if s.role == "prefill")
    assert min(s.begin_us for s in timeline.spans if s.role == "decode") >= last_prefill_us
    assert timeline.summary()["both_busy"] == pytest.approx(0, abs=1e-9)


def test_summary_adds_up() -> None:
    spans = Span(0, "prefill", 0, 60), Span(0, "decode", 20, 100), Span(1, "decode", 0, 50)
    found = Timeline("a GPU", 4, spans).summary()
    assert found["end_us"] == 100
    assert found["prefill_busy"] == pytest.approx(60 / 400)
    assert found["decode_busy"] == pytest.approx(130 / 400)
    assert found["both_busy"] == pytest.approx(40 / 400)
    assert found["idle"] == pytest.approx(1 - 150 / 400)
    assert found["tail_us"] == 50
    assert found["idle_sms"] == 2


def test_an_empty_timeline() -> None:
    assert Timeline("a GPU", 4, ()).summary()["idle_sms"] == 4


def test_the_portable_family_has_no_model() -> None:
    with pytest.raises(UnsupportedConfigError, match="no cost model"):
        simulate(scheduled(*LENGTHS, policy=Policy(family="portable")), H100)


def test_the_command_says_that_it_is_simulated(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture, chrome = tmp_path / "a" / "t.png", tmp_path / "t.json"
    text = run(
        *("explore", "trace", BATCH, "--gpu", "h100"),
        *("--plot", str(picture), "--chrome", str(chrome)),
    )
    assert text.startswith("simulated, NVIDIA H100")
    assert picture.stat().st_size > 5000
    events = json.loads(chrome.read_text())
    assert events["otherData"]["source"] == "simulated"
    assert {event["pid"] for event in events["traceEvents"]} == {"prefill", "decode"}
    assert run_json("explore", "trace", BATCH, "--gpu", "h200")["source"] == "simulated"


def test_the_command_takes_the_batch_and_files_as_options(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chrome, picture = tmp_path / "t.json", tmp_path / "t.svg"
    files = "-o", str(chrome), "-o", str(picture)
    text = run("explore", "trace", "--batch", BATCH, "--heads", "32/8", "--simulated", *files)
    assert text.startswith("simulated, ")
    assert json.loads(chrome.read_text())["otherData"]["source"] == "simulated"
    assert "<svg" in picture.read_text()
    for batches in ([], [BATCH, "--batch", BATCH]):
        with pytest.raises(ValueError, match="pass a batch once"):
            run("explore", "trace", *batches)


def test_the_command_measures_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spans = (Span(0, "prefill", 0, 60, item=0, kv_head=1),)
    marks = (Dry(0, "prefill", 50, 0),)
    measured = Timeline("a GPU", 4, spans, "measured", marks, lost_events=3)
    cases = []

    def traced(case: Case, policy: str) -> TracedRun:
        cases.append((case, policy))
        return TracedRun(policy, ("a_kernel",), measured, 100.0, 103.0)

    monkeypatch.setattr("podrt.cli.explore_trace.current_device", lambda: H100)
    monkeypatch.setattr("podrt.cli.explore_trace.trace_case", traced)
    options = "--window-left", "500", "--policy", "serial"
    text = run("explore", "trace", BATCH, *options, "-o", str(tmp_path / "t.json"))
    assert text.startswith("measured, a GPU: ")
    assert "prefill_dry_us 50" in " ".join(text.split())
    assert "overhead of the instrumented build: +3.0% (100.0 us -> 103.0 us)" in text
    ((case, policy),) = cases
    assert case.window_left == 500 and case.decode == (16384,) * 64 and policy == "serial"
    assert read_trace(tmp_path / "t.json")["source"] == "measured"
    found = run_json("explore", "trace", BATCH)
    assert (found["source"], found["traced_us"], found["lost_events"]) == ("measured", 103, 3)
    assert run("explore", "trace", BATCH, "--gpu", "h100").startswith("simulated, ")


def test_a_record_has_the_batch_under_each_policy(tmp_path: Path) -> None:
    path = tmp_path / "new" / "timeline.json"
    command = "explore", "trace", BATCH, "--gpu", "h100", "--beside", "serial"
    text = run(*command, "--record", str(path))
    assert f"simulated, {H100.name}: {BATCH}, serial" in text
    record = read_record(path)
    assert (record.batch, record.layer["num_kv_heads"], record.environment) == (BATCH, 8, {})
    fused, serial = record.runs
    assert (fused.policy, serial.policy) == ("auto", "serial")
    assert (len(fused.kernels), len(serial.kernels)) == (1, 2)
    assert fused.overhead is None and fused.timeline.source == "simulated"
    as_json = run_json(*command)
    assert fused.timeline.end_us == pytest.approx(as_json["end_us"], abs=1e-3)
    assert serial.timeline.end_us == pytest.approx(as_json["beside"][0]["end_us"], abs=1e-3)


def test_a_measured_timeline_is_drawn_with_its_marks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    spans = (Span(0, "prefill", 0, 60), Span(1, "decode", 5, 70))
    measured = Timeline("a GPU", 4, spans, "measured", (Dry(0, "prefill", 50, 0),))
    plot_timeline(measured, "title", tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 5000
