"""``podrt tune`` on a GPU: a few launches of each kind, and a winner that is then taken."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gpu_support import skip_without_hopper
from typer.testing import CliRunner

import podrt
from podrt import cli, knobs
from podrt.gpu.device import load_cupy
from podrt.policy import schedule, store
from podrt.tune.launches import designed_cases


def run_json(*arguments):
    result = CliRunner().invoke(cli.app, [*arguments, "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_read", {})
    schedule._scheduler.cache_clear()
    with knobs.scope(cache_dir=tmp_path, disable_cache=False):
        yield tmp_path
    schedule._scheduler.cache_clear()


def test_a_few_launches_are_fitted(monkeypatch, own_folder):
    skip_without_hopper()
    monkeypatch.setattr("podrt.cli.tune.designed_cases", lambda: designed_cases()[4:40:8])
    found = run_json("tune", "--dry-run")
    assert found["launches"] >= 5
    assert 1 <= found["error"] <= found["shipped_error"] * 1.01
    assert found["kept"] is None


def test_a_measured_winner_is_taken(own_folder):
    shapes = own_folder / "shapes.txt"
    shapes.write_text("512@1024 + 16x1024\n")
    (trial,) = run_json("tune", "--shapes", str(shapes), "--heads", "8/2")["trials"]
    assert all(us > 0 for us in trial["times_us"].values())
    store.forget()
    attention = podrt.HybridAttention(8, 2, 128, page_size=16, policy="autotuned")
    table = load_cupy().arange(17 * 64, dtype="int32").reshape(17, 64)
    indptr = np.concatenate(([0, 512], np.arange(513, 529))).astype(np.int32)
    attention.plan(indptr, np.full(17, 1024, np.int32), block_table=table)
    found = attention.explain()
    assert found.chosen_by == "measurement"
    if trial["winner"] != "auto":
        assert found.choice.name == trial["winner"].removeprefix("portable-")
