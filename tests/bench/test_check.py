"""Checks of variants: what is right, wrong or failed, with runs that are made up."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from cli_support import run, run_json

from podrt.bench import check as check_module
from podrt.bench.check import HEADS, Check, Subject, check_all, edge_case
from podrt.cli import explore_check
from podrt.errors import DeviceError
from podrt.explore.names import alias_of
from podrt.explore.select import select
from podrt.gpu.nominal import H100
from podrt.workloads.accuracy import Expected

FILTERS = {"archs": ["sm_90a"], "dtypes": ["bfloat16"], "head_dims": [64], "page_sizes": ["16"]}
VARIANTS = select(**FILTERS)


class Runs:
    """Stands for the GPU: results that are right, but for what a test changes."""

    def __init__(self):
        self.change = lambda case, policy, out, lse: None
        self.cases = []

    @contextmanager
    def on_gpu(self, case):
        self.cases.append(case)
        rows = sum(case.q_lens)
        rng = np.random.default_rng(0)
        requests = np.repeat(np.arange(len(case.lengths)), case.q_lens)
        shape = rows, case.num_qo_heads
        expected = Expected(
            np.arange(rows),
            requests,
            rng.standard_normal((*shape, case.head_dim)),
            rng.standard_normal(shape),
        )
        yield SimpleNamespace(case=case, expected=expected), expected

    def run(self, tensors, policy):
        out, lse = tensors.expected.out.copy(), tensors.expected.lse.copy()
        self.change(tensors.case, policy, out, lse)
        return out, lse


@pytest.fixture
def runs(monkeypatch):
    made = Runs()
    monkeypatch.setattr(check_module, "_on_gpu", made.on_gpu)
    monkeypatch.setattr(check_module, "_run", made.run)
    monkeypatch.setattr(check_module, "require_gpu", lambda *_: None)
    monkeypatch.setattr(explore_check, "current_device", lambda: H100)
    monkeypatch.setattr(explore_check, "build_all", lambda variants: None)
    return made


def subjects(variants=VARIANTS):
    return [Subject(alias_of(variant), variant) for variant in variants]


def test_every_variant_is_run_on_the_edges_of_its_own_tiles(runs):
    seen = []
    checks = check_all(subjects(), H100, seen.append)
    assert checks == seen
    assert {each.status for each in checks} == {"right"}
    assert [each.name for each in checks] == [alias_of(variant) for variant in VARIANTS]
    assert runs.cases == [edge_case(v, heads) for v in VARIANTS for heads in HEADS]
    assert all(each.rows > 0 and each.max_rel_err == 0 for each in checks)


def test_a_wrong_output_is_found_and_placed(runs):
    def change(case, policy, out, lse):
        if case.num_kv_heads == 2 and case.num_qo_heads == 8:
            out[17, 5, 3] += 2 * np.abs(out[17, 5]).max()

    runs.change = change
    (check,) = check_all(subjects(VARIANTS[:1]), H100)
    assert check.status == "wrong"
    assert check.max_rel_err == pytest.approx(2)
    assert "error 2 > 0.016, heads 8/2, request 0, row 17 of q, head 5, element 3" in check.reason


def test_nan_is_the_largest_error(runs):
    def change(case, policy, out, lse):
        out[3, 1, 0] += 100
        out[9, 0, 7] = np.nan

    runs.change = change
    (check,) = check_all(subjects(VARIANTS[:1]), H100)
    assert check.status == "wrong"
    assert np.isnan(check.max_rel_err)
    assert "row 9 of q, head 0, element 7" in check.reason
    assert check.to_dict()["max_rel_err"] is None


def test_a_wrong_lse_is_wrong(runs):
    def change(case, policy, out, lse):
        lse[0, 0] += 1

    runs.change = change
    (check,) = check_all(subjects(VARIANTS[:1]), H100)
    assert (check.status, check.lse_error) == ("wrong", 1)
    assert "LSE off by 1 > 0.001" in check.reason


def test_what_does_not_run_failed(runs):
    def change(case, policy, out, lse):
        raise DeviceError("no room")

    runs.change = change
    (check,) = check_all(subjects(VARIANTS[:1]), H100)
    assert check == Check(alias_of(VARIANTS[0]), "failed", reason="DeviceError: no room")


def test_variants_of_another_gpu_are_refused(runs):
    with pytest.raises(ValueError, match="is compiled for sm_80, NVIDIA H100 80GB HBM3 is sm_90a"):
        check_all(subjects(select(archs=["sm_80"])), H100)


@pytest.mark.parametrize(
    "features", [{"masks": ["full"]}, {"soft_caps": [True]}, {"tree_masks": [True]}], ids=str
)
def test_other_masks_caps_and_trees_are_checked_on_layers_that_have_them(runs, features):
    variants = select(**FILTERS, **features)
    checks = check_all(subjects(variants), H100)
    assert {each.status for each in checks} == {"right"}, checks
    for case in runs.cases:
        spec = case.spec()
        assert spec.mask.causal is ("masks" not in features)
        assert (spec.logits_soft_cap is not None) is ("soft_caps" in features)
        assert spec.mask.tree is ("tree_masks" in features)
    if "tree_masks" in features:  # several tokens that are decodes, of one tile and of several
        decodes = {q_len for case in runs.cases for q_len in case.q_lens if q_len <= 64}
        assert {5, 33, 64} <= decodes


def test_the_command_shows_the_wrong_ones_first(runs):
    def change(case, policy, out, lse):
        if policy.family == "portable":
            out += 1

    words = ["pod", "bf16", "d64", "page16"]
    assert {each["status"] for each in run_json("explore", "check", *words)} == {"right"}
    runs.change = change
    lines = run("explore", "check", *words, exit_code=1).splitlines()
    rows = [line for line in lines if " wrong " in line or " right " in line]
    assert [" wrong " in row for row in rows] == [True, True, False, False, False]


def test_other_tiles_run_under_their_policy(runs):
    tiles = {}

    def change(case, policy, out, lse):
        tiles[policy.prefill_tile_keys] = policy.decode_rows

    runs.change = change
    options = ["--axis", "family=hopper", "--axis", "prefill_tile_keys=64,96,176"]
    checks = run_json("explore", "check", *options)
    assert [each["name"] for each in checks] == [
        "hopper prefill_tile_keys=64",
        "hopper prefill_tile_keys=96",
    ]
    assert tiles == {64: 8, 96: 8}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["pood"], "no variant has it in its name; try pod"),
        (["pod", "--axis", "family=hopper"], "words or --axis"),
        (["--axis", "family=hopper", "--axis", "prefill_tile_keys=176"], "no combination can be"),
        (["--axis", "famly=hopper"], "try family"),
    ],
)
def test_what_cannot_be_is_said(runs, options, reason):
    with pytest.raises(ValueError, match=reason):
        run("explore", "check", *options)


def test_other_tiles_of_narrower_values_are_checked(runs):
    axes = ["--axis", "family=hopper", "--axis", "prefill_tile_keys=64"]
    (found,) = run_json("explore", "check", *axes, "--head-dim", 192, "--v-head-dim", 128)
    assert found["status"] == "right"
    assert {case.v_head_dim for case in runs.cases} == {128}
