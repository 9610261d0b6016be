"""The demo's own parts: its batches, its check, and what it does without a GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from podrt import cli, knobs
from podrt.bench.fused import Outcome, baseline_of
from podrt.cli import demo
from podrt.cli._demo_report import report
from podrt.errors import DeviceError, UnsupportedConfigError
from podrt.explore import dry_run
from podrt.gpu.arch import get_arch
from podrt.gpu.device import DeviceInfo
from podrt.kernels.families import all_default_variants
from podrt.reference import flat_page_table, reference_attention
from podrt.workloads import random_batch
from podrt.workloads.accuracy import tolerance_of
from podrt.workloads.chunked_prefill import Request, hybrid_steps, sample_trace
from podrt.workloads.random_batch import Geometry, make_workload

GEOMETRY = Geometry(num_qo_heads=4, num_kv_heads=2, head_dim=64, page_size=16, dtype="bfloat16")
REQUESTS = [Request(0.0, 300 + 10 * number, 30) for number in range(6)]
DEVICE = DeviceInfo(0, "Some GPU", get_arch("sm_90a"), 132, 1 << 36, 1 << 25, 3352.0)


@pytest.fixture(scope="module")
def workload():
    (step,) = hybrid_steps(REQUESTS, budget=256, max_kv_tokens=2000, count=1)
    return make_workload(step, GEOMETRY, np.random.default_rng(0))


def test_steps_hold_both_kinds_and_are_spread_over_the_schedule():
    steps = hybrid_steps(sample_trace(), budget=512, max_kv_tokens=32768, count=4)
    assert all(step.num_prefills and step.num_decodes for step in steps)
    assert len({step.start_s for step in steps}) == 4
    assert [step.start_s for step in steps] == sorted(step.start_s for step in steps)


def test_a_trace_without_hybrid_steps_is_refused():
    with pytest.raises(ValueError, match="batches=1: the trace gives 0 steps"):
        hybrid_steps([Request(0.0, 10, 5)], budget=64, max_kv_tokens=100, count=1)


def test_only_slots_with_a_key_hold_numbers(workload):
    filled = np.isfinite(workload.k_cache.astype(np.float32)).all(axis=(2, 3))
    assert int(filled.sum()) == int(workload.step.kv_lens.sum())
    assert np.array_equal(filled, np.isfinite(workload.v_cache.astype(np.float32)).all(axis=(2, 3)))
    assert not filled.all(axis=1).all()
    for kv_len, pages in zip(workload.step.kv_lens, workload.block_table, strict=True):
        tokens = np.arange(kv_len)
        assert filled[pages[tokens // 16], tokens % 16].all()


def test_pages_are_shuffled_and_belong_to_one_request_each(workload):
    counts = -(-workload.step.kv_lens // 16)
    owned = np.concatenate(
        [pages[:count] for pages, count in zip(workload.block_table, counts, strict=True)]
    )
    assert len(set(owned.tolist())) == len(owned)
    assert (np.diff(owned) != 1).any()


@pytest.mark.parametrize("max_pairs", [1 << 40, 1000], ids=["all rows", "windows"])
def test_checked_rows_agree_with_the_reference_of_the_whole_batch(workload, monkeypatch, max_pairs):
    monkeypatch.setattr(random_batch, "_MAX_PAIRS", max_pairs)
    monkeypatch.setattr(random_batch, "_WINDOW_ROWS", 8)
    out, lse = reference_attention(
        workload.q,
        workload.k_cache,
        workload.v_cache,
        workload.batch,
        page_table=flat_page_table(workload.block_table),
        page_size=16,
    )
    expected = workload.expected()
    if max_pairs == 1000:
        assert len(expected.rows) < len(workload.q)
    else:
        assert len(expected.rows) == len(workload.q)
    assert expected.error_of(out[expected.rows]) < 1e-12
    assert expected.lse_error_of(lse[expected.rows]) < 1e-12


def test_every_request_is_checked(workload):
    expected = workload.expected()
    requests = np.searchsorted(workload.batch.qo_indptr, expected.rows, side="right") - 1
    assert set(requests.tolist()) == set(range(workload.batch.num_requests))
    assert np.array_equal(requests, expected.requests)


def test_some_requests_alone(workload):
    first = workload.expected().of(slice(0, 2))
    assert set(first.requests.tolist()) == {0, 1}
    assert len(first.rows) == len(first.out) == len(first.lse)


@pytest.mark.parametrize("wrong", [0.0, np.nan])
def test_one_wrong_row_is_noticed(workload, wrong):
    expected = workload.expected()
    out = expected.out.copy()
    rounded = out.astype(GEOMETRY.numpy_dtype)
    assert expected.error_of(rounded) <= tolerance_of("bfloat16")
    out[-1, 3] = wrong
    assert not expected.error_of(out) <= tolerance_of("bfloat16")


def _no_gpu():
    raise DeviceError("no GPU here")


@pytest.fixture
def without_gpu(monkeypatch, tmp_path):
    """No GPU, and three variants to compile."""
    monkeypatch.setattr(demo, "current_device", _no_gpu)
    monkeypatch.setattr(
        dry_run,
        "all_default_variants",
        lambda arch, **filters: all_default_variants(
            arch, forms=["decode"], decode_rows=[8], **filters
        ),
    )
    with knobs.scope(cache_dir=tmp_path, disable_cache=False, disable_jit=False):
        yield


SMALL = ["--num-qo-heads", "4", "--num-kv-heads", "2", "--head-dim", "64"]


def test_without_a_gpu_it_compiles_and_checks_the_plan_and_says_so(without_gpu):
    result = CliRunner().invoke(cli.app, ["demo", *SMALL])
    assert result.exit_code == 0, result.output
    assert "No GPU was found" in result.stdout
    assert "(no GPU here)" in result.stdout
    assert "Compiled 3 variants (hopper and portable kernels) for sm_90a" in result.stdout
    assert " us" not in result.stdout


def test_without_a_gpu_as_json(without_gpu):
    result = CliRunner().invoke(cli.app, ["demo", *SMALL, "--dtype", "float16", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["device"] is None
    assert facts["ok"] is True
    assert facts["error"] < 1e-9
    assert facts["prefills"] > 0 < facts["decodes"]
    assert facts["families"] == ["hopper", "portable"]


@pytest.mark.parametrize(
    ("policy", "head_dim", "families", "variants"),
    [
        ("hopper", 64, ["hopper"], 1),
        ("portable", 64, ["portable"], 2),
        ("1:3", 64, ["portable"], 2),
        ("auto", 256, ["hopper", "portable"], 3),
    ],
)
def test_without_a_gpu_the_policy_says_which_families(
    without_gpu, policy, head_dim, families, variants
):
    layer = ["--num-qo-heads", "4", "--num-kv-heads", "2", "--head-dim", str(head_dim)]
    result = CliRunner().invoke(cli.app, ["demo", *layer, "--policy", policy, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["families"], facts["variants"]) == (families, variants)


@pytest.mark.parametrize(
    ("policy", "baseline"),
    [
        ("auto", "serial"),
        ("hopper", "serial"),
        ("portable", "portable-serial"),
        ("proportional", "portable-serial"),
        ("50:50", "portable-serial"),
        ("1:3", "portable-serial"),
    ],
)
def test_the_baseline_is_the_serial_policy_of_the_same_family(policy, baseline):
    assert baseline_of(policy) == baseline


@pytest.mark.parametrize("policy", ["serial", "hopper-serial", "portable-serial"])
def test_a_serial_policy_is_not_raced_against_itself(policy):
    with pytest.raises(ValueError, match=f"policy='{policy}': is the baseline"):
        baseline_of(policy)


def test_an_unknown_policy_is_refused_before_anything_is_compiled(without_gpu):
    result = CliRunner().invoke(cli.app, ["demo", "--policy", "fastest"])
    assert isinstance(result.exception, UnsupportedConfigError)
    assert "policy='fastest'" in str(result.exception)


def test_without_a_gpu_an_error_over_tolerance_fails(without_gpu, monkeypatch):
    monkeypatch.setattr(dry_run, "DRY_RUN_TOLERANCE", 0.0)
    assert CliRunner().invoke(cli.app, ["demo", *SMALL]).exit_code == 1


def test_an_impossible_layer_is_refused_before_anything_is_compiled(without_gpu):
    result = CliRunner().invoke(cli.app, ["demo", "--num-qo-heads", "5", "--num-kv-heads", "2"])
    assert isinstance(result.exception, ValueError)
    assert "num_qo_heads=5" in str(result.exception)


def _outcome(**changes):
    facts = {
        "prefills": 1,
        "decodes": 40,
        "tokens": 512,
        "family": "hopper",
        "variants": ("pod_x",),
        "fused_us": 100.0,
        "serial_us": 125.0,
        "error": 0.004,
        "lse_error": 1e-6,
        "checked_rows": 300,
        "ok": True,
    }
    return Outcome(**{**facts, **changes})


def test_report_fits_in_80_columns_and_says_what_was_checked(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcomes = [_outcome(), _outcome(variants=("pod_y",))]
    report(outcomes, DEVICE, GEOMETRY, ("auto", "serial"), as_json=False)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert 'hopper kernels, policy "auto" against "serial"' in text
    assert "1.25x" in text
    assert "Checked 600 of 1024 query rows" in text
    assert "variant 2: pod_y" in text
    assert "All batches agree." in text


def test_report_names_wrong_batches(capsys):
    outcomes = [_outcome(), _outcome(ok=False, error=float("nan"))]
    report(outcomes, DEVICE, GEOMETRY, ("auto", "serial"), as_json=False)
    assert "1 of 2 batches are WRONG." in capsys.readouterr().out


def test_report_as_json_states_policies_and_family(capsys):
    policies = ("portable", "portable-serial")
    report([_outcome(family="portable")], DEVICE, GEOMETRY, policies, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["policy"], facts["serial_policy"]) == policies
    assert facts["batches"][0]["family"] == "portable"
