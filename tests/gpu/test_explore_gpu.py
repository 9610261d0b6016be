"""Checks, sweeps and folders of single variants on a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
from gpu_support import skip_without_hopper
from typer.testing import CliRunner

from podrt import cli
from podrt.bench.check import Subject, check_all
from podrt.bench.sweep.records import load
from podrt.explore.alone import alone, edge_lengths, gpu_for, layer_for
from podrt.explore.names import alias_of
from podrt.explore.repro import Repro, write_repro
from podrt.explore.select import select
from podrt.gpu.device import current_device
from podrt.jit import build_many
from podrt.kernels.families import source_of
from podrt.workloads.lengths import batch_of_lengths

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Whose width test runners pass on: what is wrong is told whole."""
    monkeypatch.delenv("COLUMNS", raising=False)


BATCHES = ("300@1000 + 8x2000", "64@64 + 3x500")


def variants(**filters):
    arch = current_device().arch.name
    return select(archs=[arch], head_dims=[128], dtypes=["bfloat16"], page_sizes=["16"], **filters)


def invoke(*arguments, exit_code=0):
    result = CliRunner().invoke(cli.app, ["explore", *map(str, arguments)])
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result.stdout


@pytest.mark.parametrize(
    "features", [{}, {"masks": ["full"]}, {"soft_caps": [True]}, {"tree_masks": [True]}], ids=str
)
def test_variants_are_right_at_the_edges_of_their_tiles(features):
    subjects = [Subject(alias_of(variant), variant) for variant in variants(**features)]
    build_many([source_of(subject.variant) for subject in subjects])
    checks = check_all(subjects, current_device())
    assert [each for each in checks if each.status != "right"] == []
    assert all(each.max_rel_err > 0 and each.rows > 10 for each in checks)


@pytest.mark.parametrize(
    "axes",
    [
        ["family=hopper", "prefill_tile_keys=64,80,96,128", "decode_ring=2,3"],
        ["family=hopper", "prefill_tile_keys=64", "prefill_ring=3", "decode_rows=16,32"],
        ["family=portable", "prefill_tile_keys=32,64", "prefill_ring=2,3"],
    ],
    ids=lambda axes: " ".join(axes[:2]),
)
def test_other_tiles_and_rings_are_right_too(axes):
    if "family=hopper" in axes:
        skip_without_hopper()
    options = [option for axis in axes for option in ("--axis", axis)]
    invoke("check", *options)


def test_a_small_sweep_is_resumed_and_replayed(tmp_path):
    path = tmp_path / "sweep.jsonl"
    options = [*(part for batch in BATCHES for part in ("--batch", batch)), "--samples", 3]
    axes = ["--axis", "family=portable", "--axis", "ratio=2:1,1:2"]
    invoke("sweep", *axes, *options, "--out", path)
    first = load(path).results
    assert len(first) == 2 * (4 + 2)
    assert {result.status for result in first} == {"ok"}
    assert all(len(result.samples_us) == 3 and result.method == "graph" for result in first)
    assert all(result.relative > 0 and 0 < result.max_rel_err < 0.016 for result in first)
    assert load(path).environment["ceilings"]["read_gbs"] > 0
    invoke("sweep", *axes, *options, "--out", path)
    assert load(path).results == first
    more = ["--axis", "family=portable", "--axis", "ratio=2:1,1:1,1:2"]
    invoke("sweep", *more, *options, "--out", path)
    assert load(path).results[: len(first)] == first
    assert len(load(path).results) == len(first) + 2
    assert "portable ratio=1:1" in invoke("sweep", "--replay", path)


def test_a_folder_of_one_variant_runs_by_itself(tmp_path):
    families = {variant.family: variant for variant in variants(forms=["pod"])}
    for family, variant in families.items():
        layer, gpu = layer_for(variant, 8, 2), gpu_for(variant)
        lengths = tuple(edge_lengths(variant, layer.group))
        found = alone(variant, layer, batch_of_lengths(lengths, variant.page_size), gpu)
        write_repro(Repro(variant, layer, lengths, gpu, found), tmp_path / family)
        done = subprocess.run(
            [sys.executable, "run.py", "3"],
            cwd=tmp_path / family,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, (variant.name, done.stdout, done.stderr)
        assert "median of 3 runs" in done.stdout
