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
from podrt.explore.record import read_record
from podrt.explore.spans import timeline_of
from podrt.gpu.device import current_device
from podrt.kernels.tracing import recorded
from podrt.policy.policies import parse_policy
from podrt.runtime.kernels import instrumented_kernels, load_kernel
from podrt.spec.attention import make_spec
from podrt.workloads.lengths import parse_lengths

pytestmark = pytest.mark.gpu

LAYER = make_spec(32, 8, 128, 16, "NHD", "bfloat16", True, None)
CASE = Case.of(parse_lengths("1024@4096 + 300@300 + 40x4096 + 3x50"), LAYER)
HOPPER = ("hopper", "decode-only=8", "prefill-only=8", "hopper-serial")
PORTABLE = ("portable", "portable-serial")


@pytest.fixture(params=HOPPER + PORTABLE)
def policy(request):
    if request.param in HOPPER:
        skip_without_hopper()
    return request.param


def planned(tensors, policy):
    case = tensors.case
    qo_indptr = np.concatenate(([0], np.cumsum(case.q_lens))).astype(np.int32)
    kv_lens = np.array(case.kv_lens, np.int32)
    chosen = parse_policy(policy)
    return planned_attention(case.spec(), chosen, qo_indptr, kv_lens, tensors.block_table)


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


@pytest.mark.parametrize(
    "lengths",
    ["1024@4096 + 300@300 + 40x4096 + 3x50", "1024@4096 + 300@300", "40x4096 + 3x50", "4x30000"],
    ids=["both sides", "prefill alone", "decode alone", "split decodes"],
)
def test_every_unit_is_recorded_once(policy, lengths):
    case = Case.of(parse_lengths(lengths), LAYER)
    traced = trace_case(case, policy)
    timeline, gpu = traced.timeline, current_device()
    attention = planned(make_tensors(case), policy)
    plan, variants = attention.current_plan, attention.variants
    assert traced.kernels == tuple(variant.name for variant in variants)
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
    assert all(0 <= span.begin_us <= span.end_us for span in timeline.spans)  # a coarse clock
    assert sum(span.begin_us < span.end_us for span in timeline.spans) > len(units) / 2
    assert all(0 <= span.sm < gpu.num_sms for span in timeline.spans)
    sides = {role for role, _, _ in units}
    assert sides <= {mark.role for mark in timeline.dry}
    assert all(0 <= mark.sm < gpu.num_sms for mark in timeline.dry)
    assert 5 < timeline.end_us < 100_000
    assert timeline.end_us < 1.5 * traced.traced_us + 50
    for role in sides:
        assert 0 < timeline.summary()[f"{role}_busy"] <= 1


def test_other_attention_is_not_instrumented_meanwhile():
    tensors = make_tensors(CASE)
    plain = planned(tensors, "auto")
    with instrumented_kernels():
        attention = planned(tensors, "auto")
        kernels = [load_kernel(each, current_device().ordinal) for each in attention.variants]
    with recording(kernels, 1 << 10) as (_, read):
        outputs(tensors, plain)
        found = recorded(read())
    assert found.lost == len(found.events) == 0


def test_a_graph_of_a_reservation_records_each_replay():
    import cupy

    gpu = current_device()
    with cupy.cuda.Stream(non_blocking=True) as stream, instrumented_kernels():
        tensors = make_tensors(CASE)
        attention = planned(tensors, "auto")
        attention.reserve(max_requests=64, max_tokens=2048, max_kv_len=8192)
        plan_case(attention, tensors)
        stream.begin_capture()
        try:
            attention.run(tensors.q, tensors.k_cache, tensors.v_cache, out=tensors.out)
        finally:
            graph = stream.end_capture()
        kernels = [load_kernel(each, gpu.ordinal) for each in attention.reserved_variants]
        plan = attention.current_plan
        with recording(kernels, 1 << 16) as (clear, read):
            for _ in range(2):
                clear()
                graph.launch(stream)
                spans = timeline_of(recorded(read()), plan, gpu.name, gpu.num_sms).spans
                units = {(span.role, span.item, span.kv_head) for span in spans}
                assert len(units) == plan.num_prefill_units + plan.num_decode_units


def plan_case(attention, tensors):
    import cupy

    qo_indptr = np.concatenate(([0], np.cumsum(CASE.q_lens))).astype(np.int32)
    kv_lens = np.array(CASE.kv_lens, np.int32)
    attention.plan(qo_indptr, kv_lens, block_table=cupy.asarray(tensors.block_table))


def test_results_recorded_to_a_buffer_that_is_too_small_say_so():
    timeline = trace_case(CASE, "portable", room=64).timeline
    assert timeline.lost_events > 0
    assert len(timeline.spans) <= 32


def test_the_command_measures(tmp_path):
    files = tmp_path / "t.json", tmp_path / "record.json"
    command = ["explore", "trace", "--batch", "512@2048 + 8x4096", "-o", str(files[0])]
    recording_too = ["--beside", "serial", "--record", str(files[1])]
    result = CliRunner().invoke(cli.app, [*command, *recording_too])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.startswith("measured, ")
    assert "overhead of the instrumented build" in result.stdout
    assert '"source": "measured"' in files[0].read_text()
    record = read_record(files[1])
    assert [run.policy for run in record.runs] == ["auto", "serial"]
    assert all(run.overhead is not None and run.timeline.spans for run in record.runs)
    assert record.environment["gpu"] == current_device().name
    result = CliRunner().invoke(cli.app, [*command, "--simulated"])
    assert result.exit_code == 0 and result.stdout.startswith("simulated, ")
