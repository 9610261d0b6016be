"""Instrumented builds on a GPU: the same bits, and every unit of the plan recorded once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from gpu_support import bits, skip_without_hopper
from typer.testing import CliRunner

from podrt import cli
from podrt.bench.case import Case
from podrt.bench.planned import planned_attention
from podrt.bench.tensors import make_tensors
from podrt.bench.trace import recording, trace_case
from podrt.gpu.device import current_device
from podrt.kernels.tracing import recorded
from podrt.policy.policies import Policy
from podrt.runtime.kernels import instrumented_kernels, load_kernel
from podrt.spec.attention import make_spec
from podrt.workloads.lengths import parse_lengths

pytestmark = pytest.mark.gpu

LAYER = make_spec(32, 8, 128, 16, "NHD", "bfloat16", True, None)
CASE = Case.of(parse_lengths("1024@4096 + 300@300 + 40x4096 + 3x50"), LAYER)
POLICIES = {
    "hopper": Policy(family="hopper"),
    "hopper decode first": Policy(family="hopper", decode_only_sms=8),
    "hopper serial": Policy(family="hopper", serial=True),
    "portable": Policy(family="portable"),
}


@pytest.fixture(params=POLICIES)
def policy(request):
    if request.param.startswith("hopper"):
        skip_without_hopper()
    return POLICIES[request.param]


def planned(tensors, policy):
    qo_indptr = np.concatenate(([0], np.cumsum(CASE.q_lens))).astype(np.int32)
    kv_lens = np.array(CASE.kv_lens, np.int32)
    return planned_attention(CASE.spec(), policy, qo_indptr, kv_lens, tensors.block_table)


def outputs(tensors, attention):
    import cupy

    lse = cupy.full(tensors.q.shape[:2], np.nan, "float32")
    tensors.out.view("uint16").fill(0x7FFF)
    attention.run(tensors.q, tensors.k_cache, tensors.v_cache, out=tensors.out, lse=lse)
    return bits(tensors.out).copy(), lse.get()


def test_results_have_the_bits_of_plain_builds(policy):
    tensors = make_tensors(CASE)
    plain = outputs(tensors, planned(tensors, policy))
    with instrumented_kernels():
        attention = planned(tensors, policy)
        kernels = [load_kernel(each, current_device().ordinal) for each in attention.variants]
        silent = outputs(tensors, attention)  # nothing to record to
        with recording(kernels, 1 << 16) as (_, read):
            recorded_run = outputs(tensors, attention)
            assert len(recorded(read()).events) > 0
    for instrumented in (silent, recorded_run):
        for mine, expected in zip(instrumented, plain, strict=True):
            np.testing.assert_array_equal(mine, expected)


def test_every_unit_is_recorded_once(policy):
    traced = trace_case(CASE, policy)
    timeline, gpu = traced.timeline, current_device()
    attention = planned(make_tensors(CASE), policy)
    plan, variants = attention.current_plan, attention.variants
    assert timeline.source == "measured" and timeline.lost_events == 0
    units = Counter((span.role, span.item, span.kv_head) for span in timeline.spans)
    both_warpgroups = 2 if variants[0].family == "hopper" else 1
    expected = Counter()
    for role, items, times in (
        ("prefill", plan.prefill, both_warpgroups),
        ("decode", plan.decode, 1),
    ):
        for item in range(len(items)):
            for head in range(plan.num_kv_heads):
                expected[role, item, head] = times
    assert units == expected
    assert all(0 <= span.begin_us < span.end_us for span in timeline.spans)
    assert all(0 <= span.sm < gpu.num_sms for span in timeline.spans)
    assert {mark.role for mark in timeline.dry} == {"prefill", "decode"}
    assert all(0 <= mark.sm < gpu.num_sms for mark in timeline.dry)
    assert 5 < timeline.end_us < 100_000
    assert 0 < timeline.summary()["prefill_busy"] <= 1


def test_results_recorded_to_a_buffer_that_is_too_small_say_so():
    timeline = trace_case(CASE, Policy(family="portable"), room=64).timeline
    assert timeline.lost_events > 0
    assert len(timeline.spans) <= 32


def test_the_command_measures(tmp_path):
    files = [tmp_path / "t.json"]
    command = ["explore", "trace", "--batch", "512@2048 + 8x4096", "-o", str(files[0])]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.startswith("measured, ")
    assert "overhead of the instrumented build" in result.stdout
    assert '"source": "measured"' in files[0].read_text()
    result = CliRunner().invoke(cli.app, [*command, "--simulated"])
    assert result.exit_code == 0 and result.stdout.startswith("simulated, ")
