"""The endurance run where no GPU is needed: its steps, its turns, and what it calls flat."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from podrt.bench import endurance
from podrt.bench.flatness import ALLOWED_BYTES, MemorySample, growth_bytes, not_flat, resident_bytes
from podrt.bench.serving_lane import MAX_KV_LEN, MAX_REQUESTS, SIZES
from podrt.workloads.traces import Request, sample_trace

MIB = 1 << 20


def samples(rss_mib):
    return [MemorySample(500 * i, size * MIB, 0, 0, 0) for i, size in enumerate(rss_mib)]


def test_memory_that_settles_is_flat():
    growth = growth_bytes(samples([100, 900, 901, 903, 902, 903, 901, 902, 904, 903, 902, 903]))
    assert growth["rss_bytes"] == 0
    assert not not_flat(growth)


def test_memory_that_leaks_is_not():
    leaking = samples([100 + 20 * i for i in range(12)])
    assert growth_bytes(leaking)["rss_bytes"] == 120 * MIB
    (line,) = not_flat(growth_bytes(leaking))
    assert line.startswith("rss_bytes grew by 120.0 MiB")


def test_a_few_samples_tell_nothing():
    assert growth_bytes(samples([1] * 7)) == {}
    assert "more steps" in not_flat({})[0]


def test_every_kind_of_memory_has_a_bound():
    assert growth_bytes(samples([1] * 8)).keys() == ALLOWED_BYTES.keys()


def test_resident_memory_is_that_of_this_process():
    before = resident_bytes()
    block = np.ones(64 * MIB, np.uint8)
    assert resident_bytes() - before > 32 * MIB
    assert block.any()


def test_steps_go_on_for_ever_within_what_is_reserved():
    steps = list(islice(endurance.trace_steps(sample_trace()[:40]), 4000))
    assert len(steps) == 4000
    assert max(step.total_tokens for step in steps) == SIZES[-1]
    assert max(len(step.q_lens) for step in steps) <= MAX_REQUESTS
    assert max(step.kv_lens.max() for step in steps) <= MAX_KV_LEN
    for size in SIZES[:-1]:
        assert any(step.total_tokens <= size for step in steps)


def test_a_trace_of_requests_that_are_too_long_is_refused():
    with pytest.raises(ValueError, match="every request grows beyond"):
        next(endurance.trace_steps([Request(0.0, MAX_KV_LEN + 1, 1)]))


class FakeLane:
    def __init__(self, error):
        self.calls, self.error, self.stream = [], error, self

    def synchronize(self):
        self.calls.append("wait")

    def poison(self):
        self.calls.append("poison")

    def plan(self, step):
        self.calls.append("plan")

    def replay(self, size):
        self.calls.append(f"replay {size}")

    def run(self, tokens, *, with_out):
        self.calls.append(f"run {with_out}")

    def error_of(self, step, out):
        return self.error


@pytest.fixture
def flat_memory(monkeypatch):
    monkeypatch.setattr(endurance, "sample_memory", lambda step: MemorySample(step, 1, 1, 1, 1))


def serve(lanes, count=200, **options):
    steps = endurance.trace_steps(sample_trace()[:10])
    return endurance.serve(steps, lanes, count, np.random.default_rng(0), check_every=10, **options)


def test_every_call_has_its_turn_after_a_plan(flat_memory):
    lanes = [FakeLane(1e-3), FakeLane(1e-3)]
    record = serve(lanes)
    assert record.steps == 200
    assert record.failures() == []
    assert [check["step"] for check in record.checks] == list(range(10, 201, 10))
    made = Counter(call for lane in lanes for call in lane.calls)
    assert made["plan"] == 200
    assert {f"replay {size}" for size in SIZES} | {"run True", "run False"} <= made.keys()
    assert made["poison"] == 20
    assert sum(record.turns.values()) == 200


@pytest.mark.parametrize("error", [0.5, float("nan"), float("inf")])
def test_a_wrong_result_is_a_failure(flat_memory, error):
    record = serve([FakeLane(error)])
    assert len(record.failures()) == len(record.checks)
    assert "step 10" in record.failures()[0]


def test_the_time_limit_ends_a_run(flat_memory):
    assert serve([FakeLane(0.0)], deadline_s=0.0).steps == 0
