"""Tiny runs of what ``podrt bench`` measures, on a GPU."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from podrt import cli
from podrt.bench import endurance, host
from podrt.bench.host_batches import decodes, frameworks
from podrt.bench.results import load
from podrt.workloads.traces import sample_trace

SUITE = """
description = "tiny"

[[group]]
name = "tiny"
heads = [[8, 2]]
head_dims = [64]
page_sizes = ["contiguous", 16]
dtype = "{dtype}"
policies = ["50:50", "1:4", "green-contexts=64", "no such policy"]
points = [{{ prefill = [[100, 300], [17, 17]], decode = {{ requests = 9, kv_len = 513 }} }}]

[[group]]
name = "solo"
heads = [[8, 2]]
head_dims = [64]
page_sizes = [16]
dtype = "{dtype}"
points = [{{ decode = {{ requests = 9, kv_len = 513 }} }}]
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_tiny_suite(tmp_path, dtype):
    suite = tmp_path / "tiny.toml"
    suite.write_text(SUITE.format(dtype=dtype))
    arguments = ["bench", "--suite", str(suite), "--out", str(tmp_path), "--peers", "none"]
    result = CliRunner().invoke(cli.app, [*arguments, "--only", "page16"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(cli.app, [*arguments, "--resume"])
    assert result.exit_code == 0, result.output
    results = load(tmp_path / "tiny.json")
    assert len(results.case_names) == 3
    ceilings = results.environment["ceilings"]
    assert ceilings["matmul_tflops"] > 0 < ceilings["read_gbs"]
    for row in results.rows:
        if row.policy == "no such policy":
            assert "no such policy" in row.error
            assert row.time_us is None
            continue
        assert row.error is None, (row.case, row.policy)
        assert row.time_us > 0
        assert row.method == "graph"
        assert len(row.samples_us) >= 20
        assert row.max_rel_err < 0.02
        assert 0 < row.oracle_us <= row.floor_us
        if row.case.startswith("tiny"):
            assert row.own_serial_us > 0 < row.own_streams_us


def test_a_little_of_the_suite_host(monkeypatch):
    batch = decodes(7, prefill=100)
    for name, value in {
        "LAYERS": 3,
        "_SAMPLES": 4,
        "_STEP_SAMPLES": 4,
        "_REPLAY_SAMPLES": 4,
        "_RUN_BATCHES": (batch,),
        "_PLAN_BATCHES": (batch,),
        "_RESERVED_PLAN_BATCHES": (batch,),
        "_REPLAY_HYBRID": batch,
        "_REPLAY_DECODES": (decodes(7),),
    }.items():
        monkeypatch.setattr(host, name, value)
    rows = host.measure_host()
    whats = {"run", "run alone", "first run", "plan", "write", "step", "replay"}
    assert {row.what for row in rows} == whats
    assert {row.framework for row in rows} == {each.name for each in frameworks()}
    assert all(0 < row.median_us <= row.p99_us for row in rows)


def test_a_few_steps_of_the_endurance_run():
    steps = endurance.trace_steps(sample_trace())
    lanes = endurance.make_lanes(seed=0)
    record = endurance.serve(steps, lanes, 120, np.random.default_rng(0), check_every=10)
    assert record.steps == 120
    assert not [line for line in record.failures() if line.startswith("step")]


@pytest.mark.skipif(shutil.which("ncu") is None, reason="no ncu (NVIDIA Nsight Compute)")
def test_dram_bytes_of_a_tiny_suite(tmp_path):
    suite = tmp_path / "tiny.toml"
    suite.write_text(SUITE.format(dtype="bfloat16"))
    arguments = ["bench", "--suite", str(suite), "--out", str(tmp_path), "--dram", "--only"]
    result = CliRunner().invoke(cli.app, [*arguments, "tiny/8-2 d64 page16"])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "dram.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == ["auto", "serial", "prefill alone", "decode alone"]
    for row in rows:
        # So small an output stays in L2 when the kernel ends.
        assert 0.5 < (row["read_bytes"] + row["written_bytes"]) / row["min_bytes"] < 3
