"""The suite ``host`` where no GPU is needed: batches, clock, rows, table."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from podrt import cli
from podrt.bench import host, host_timing
from podrt.bench.environment import cpu_model
from podrt.bench.host_batches import PAGE_SIZE, decodes, short_prompts
from podrt.bench.host_rows import HostRow, host_table, replay_lines, row_of
from podrt.bench.results import write_rows
from podrt.cli import bench


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the calls of a test move: ``clock.ns``."""

    class Clock:
        ns = 0

        def spend(self, us):
            self.ns += 1000 * us

    clock = Clock()
    monkeypatch.setattr(host_timing.time, "perf_counter_ns", lambda: clock.ns)
    return clock


def test_bursts_count_calls_and_not_the_wait_before_them(clock):
    calls = [lambda: clock.spend(5), lambda: clock.spend(7)]
    times_us = host_timing.time_bursts(calls, lambda: clock.spend(1000), samples=3)
    assert times_us == [6.0] * 3


def test_first_calls_count_without_what_prepares_them(clock):
    steps = []

    def prepare(step):
        steps.append(step)
        clock.spend(100)

    times_us = host_timing.time_after(prepare, lambda: clock.spend(9), lambda: None, samples=4)
    assert times_us == [9.0] * 4
    assert steps == list(range(len(steps)))


def test_every_step_has_a_call_of_its_own(clock):
    def make_call(step):
        clock.spend(50)
        return lambda: clock.spend(step)

    assert host_timing.time_steps(make_call, lambda: None, 3, warm_up=2) == [2.0, 3.0, 4.0]


def test_calls_of_a_step_count_together_without_what_comes_between(clock):
    def make_calls(step):
        clock.spend(50)
        return [lambda: clock.spend(2), lambda: clock.spend(3)]

    times_us = host_timing.time_apart(
        make_calls, lambda: clock.spend(1000), lambda: clock.spend(100), samples=3
    )
    assert times_us == [5.0] * 3


def test_rows_hold_median_and_99th_percentile():
    row = row_of("run", "torch", 256, "256 decodes, out=", [*[5.0] * 98, 50.0, 70.0])
    assert (row.median_us, row.p99_us) == (5.0, pytest.approx(50.2))


def test_saved_rows_have_the_fields_that_readers_expect(tmp_path):
    rows = [row_of("plan", "cupy", 32, "32 decodes", [1.0, 2.0, 3.0])]
    write_rows(rows, {"gpu": "NVIDIA H100", "cpu": cpu_model()}, tmp_path / "h100" / "host.json")
    data = json.loads((tmp_path / "h100" / "host.json").read_text())
    assert data["environment"]["cpu"]
    assert data["rows"] == [
        {
            "what": "plan",
            "framework": "cupy",
            "requests": 32,
            "case": "32 decodes",
            "median_us": 2.0,
            "p99_us": 2.98,
        }
    ]


def test_table_marks_what_is_over_its_bar():
    rows = [
        HostRow("plan", "torch", 256, "256 decodes", 71.0, 90.0),
        HostRow("run", "torch", 256, "256 decodes, out=", 6.5, 9.0),
        HostRow("run alone", "torch", 256, "256 decodes, out=", 30.0, 40.0),
    ]
    console = Console(width=200, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(host_table(rows, host.BARS_US))
    lines = console.file.getvalue().splitlines()
    assert "\x1b[31m" in next(line for line in lines if "71.00" in line)
    assert "\x1b[32m" in next(line for line in lines if "6.50" in line)
    assert "\x1b[3" not in next(line for line in lines if "30.00" in line)


def test_replays_are_compared_with_the_first_row_of_their_batch():
    rows = [
        HostRow("plan", "cupy", 64, "ignored: a", 1.0, 1.0),
        HostRow("replay", "cupy", 64, "64 decodes: ordinary launch", 100.0, 101.0),
        HostRow("replay", "cupy", 64, "64 decodes: fused replay", 104.0, 105.0),
    ]
    assert replay_lines(rows) == ["64 decodes: fused replay / ordinary launch: 1.040 (+4.00 us)"]


def test_bars_are_of_batches_that_are_measured():
    measured = {batch.name for batch in host._PLAN_BATCHES}
    ways = ("out=", "no out", f"{host.LAYERS} layers")
    runs = {f"{batch.name}, {how}" for batch in host._RUN_BATCHES for how in ways}
    for what, case in host.BARS_US:
        assert case in (measured if what == "plan" else runs)


def test_batches_change_from_step_to_step_within_their_limits():
    batch = decodes(31, prefill=512)
    assert batch.requests == 32
    assert batch.q_lens.tolist() == [512] + [1] * 31
    lengths = [batch.at_step(step) for step in range(200)]
    assert all(array.dtype == np.int32 for array in lengths)
    assert (lengths[0] != lengths[1]).all()
    assert max(array.max() for array in lengths) <= batch.limits["max_kv_len"]
    assert max(array.max() for array in lengths) <= batch.max_pages * 16
    table = batch.block_table()
    assert table.shape == (32, batch.max_pages)
    assert table.max() < batch.num_pages


def test_many_short_prompts():
    batch = short_prompts(80_000, 16, (32, 8))
    assert batch.requests == 80_000
    assert batch.qo_indptr[-1] == 1_280_000


def test_the_suite_is_measured_alone():
    for arguments in (["--list"], ["--suite", "peers"], ["--only", "x"], ["--resume"]):
        result = CliRunner().invoke(cli.app, ["bench", "--suite", "host", *arguments])
        assert isinstance(result.exception, ValueError)
        assert "is measured alone" in str(result.exception)


def test_the_command_saves_and_prints(tmp_path, monkeypatch):
    from podrt.gpu.arch import get_arch
    from podrt.gpu.device import DeviceInfo

    device = DeviceInfo(0, "NVIDIA H100", get_arch("sm_90a"), 132, 1 << 36, 1 << 25, 3350.0)
    row = HostRow("plan", "cupy", 32, "32 decodes", 40.0, 50.0)
    monkeypatch.setattr(bench, "current_device", lambda: device)
    monkeypatch.setattr(bench, "host_environment", lambda device: {"cpu": "a CPU"})
    monkeypatch.setattr(bench, "measure_host", lambda on_row: [row])
    result = CliRunner().invoke(cli.app, ["bench", "--suite", "host", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "40.00" in result.stdout
    assert "a CPU" in result.stdout
    assert json.loads((tmp_path / "host.json").read_text())["rows"][0]["median_us"] == 40.0


def test_a_prompt_may_move_on_by_a_chunk_at_every_step() -> None:
    batch = decodes(3, prefill=512, moves_on=True)
    first, second = batch.at_step(0), batch.at_step(1)
    assert (second - first).tolist() == [512, 1, 1, 1]
    assert "next chunk" in batch.name
    longest = max(int(batch.at_step(step).max()) for step in range(200))
    assert longest <= batch.limits["max_kv_len"]
    assert longest <= batch.max_pages * PAGE_SIZE
