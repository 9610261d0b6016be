"""Parts of the SMs: what is asked of the driver, and how both sides are joined, on stand-ins."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
from bench_support import make_case, make_results, make_rows

from podrt.bench import contenders, green_contexts
from podrt.bench.case import Case
from podrt.bench.contenders import GREEN_SMS, Contender, is_candidate, names_for
from podrt.bench.green_contexts import Part, partition
from podrt.bench.report import result_table
from podrt.bench.summary import headlines, summarise
from podrt.errors import DeviceError

OK = 0
NUM_SMS = 132


class Status(int):
    name = "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION"


def sms(count):
    return SimpleNamespace(sm=SimpleNamespace(smCount=count))


@pytest.fixture
def driver(monkeypatch):
    """A driver that gives SMs by eights, and the streams as they were asked for."""
    module = pytest.importorskip("cuda.bindings.driver")
    made = []

    def split(groups, resource, flags, least):
        count = -(-least // 8) * 8
        return OK, [sms(count)], 1, sms(max(resource.sm.smCount - count, 0))

    def context(described, device, flags):
        made.append(described.sm.smCount)
        return OK, described

    answers = {
        "cuDeviceGet": lambda ordinal: (OK, ordinal),
        "cuDeviceGetDevResource": lambda device, kind: (OK, sms(NUM_SMS)),
        "cuDevSmResourceSplitByCount": split,
        "cuDevResourceGenerateDesc": lambda resources, count: (OK, resources[0]),
        "cuGreenCtxCreate": context,
        "cuGreenCtxStreamCreate": lambda context, flags, priority: (OK, context.sm.smCount),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(module, name, answer)
    cupy = SimpleNamespace(cuda=SimpleNamespace(ExternalStream=lambda ptr, device: ptr))
    monkeypatch.setattr(green_contexts, "load_cupy", lambda: cupy)
    partition.cache_clear()
    yield module
    partition.cache_clear()


def test_parts_have_all_sms_together_and_a_stream_each(driver):
    assert partition(0, 64) == (Part(64, 64), Part(68, 68))
    assert partition(0, 65) == (Part(72, 72), Part(60, 60))


def test_a_part_that_leaves_nothing_is_refused(driver):
    with pytest.raises(DeviceError, match=r"136 of 132 SMs for one side leave none"):
        partition(0, 132)


def test_what_the_driver_refuses_says_so(driver, monkeypatch):
    monkeypatch.setattr(driver, "cuGreenCtxCreate", lambda *_: (Status(914), None))
    with pytest.raises(DeviceError, match=r"cuGreenCtxCreate answers CUDA_ERROR_INVALID.*CUDA 12"):
        partition(0, 64)


def with_policies(*policies, **changes):
    case = make_case(**changes)
    return Case(**{**vars(case), "policies": policies})


def test_a_case_that_names_them_gets_every_split():
    names = names_for(with_policies("hopper", "green-contexts"))
    assert names[-len(GREEN_SMS) - 1 :] == [
        "hopper",
        *(f"green-contexts={count}" for count in GREEN_SMS),
    ]
    assert not any(is_candidate(name) for name in names if name.startswith("green"))
    assert names_for(with_policies("green-contexts", prefill=())) == ["auto"]


def test_each_side_is_planned_for_its_sms_and_both_are_joined(monkeypatch):
    log, planned = [], []

    def stream(name):
        return SimpleNamespace(
            record=lambda event: log.append(f"{name} records"),
            wait_event=lambda event: log.append(f"{name} waits"),
        )

    class Side:
        def __init__(self, name):
            self.name, self.inner = name, stream(name)
            self.record, self.wait_event = self.inner.record, self.inner.wait_event

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    def attention(tensors, requests, policy, num_sms):
        planned.append((requests, policy, num_sms))
        return Contender(f"kernel{num_sms}", partial(log.append, f"launch {num_sms}"), requests)

    current = stream("current")
    cuda = SimpleNamespace(
        get_current_stream=lambda: current,
        Event=lambda disable_timing: object(),
        runtime=SimpleNamespace(getDevice=lambda: 3),
    )
    parts = Part(Side("prefill"), 64), Part(Side("decode"), 68)
    monkeypatch.setattr(contenders, "load_cupy", lambda: SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(contenders, "partition", lambda device, count: parts)
    monkeypatch.setattr(contenders, "_attention", attention)
    tensors = SimpleNamespace(case=make_case(decode=2))
    made = contenders.make_contender("green-contexts=64", tensors)
    assert planned == [(slice(0, 1), "auto", 64), (slice(1, 3), "auto", 68)]
    assert made.variant == "kernel64, kernel68"
    assert made.requests == slice(0, 3)
    made.enqueue()
    assert log == [
        *("current records", "decode waits", "launch 68", "decode records"),
        *("current records", "prefill waits", "launch 64", "prefill records"),
        *("current waits", "current waits"),
    ]


def test_the_table_has_the_best_split_and_no_mean_takes_it_for_a_policy():
    times_us = {"auto": 100.0, "green-contexts=64": 90.0, "green-contexts=72": 80.0}
    results = make_results(make_rows(make_case(), times_us))
    (summary,) = summarise(results.rows)
    assert (summary.green_us, summary.best) == (80.0, ["auto"])
    assert "green x" in [column.header for column in result_table(results, "suite").columns]
    assert not any("green" in line for line in headlines([summary]))
