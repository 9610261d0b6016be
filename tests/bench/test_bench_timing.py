"""Timing on a stand-in for CuPy whose clock moves by as much as each launch says."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from podrt.bench import timing
from podrt.bench.timing import Timing, Work, best_and_ties, capture_graph, time_all


class FakeGpu:
    """Keeps the order of what is enqueued; `now_us` is the time on the only stream."""

    def __init__(self):
        self.now_us = 0.0
        self.log = []
        self.capturing = False
        self.cuda = SimpleNamespace(
            Event=lambda: FakeEvent(self),
            get_elapsed_time=lambda begin, end: (end.at_us - begin.at_us) / 1e3,
            get_current_stream=lambda: self,
            runtime=SimpleNamespace(memGetInfo=lambda: (1 << 30, 1 << 30)),
        )

    def launch(self, name, duration_us):
        self.log.append(("captured " if self.capturing else "") + name)
        if not self.capturing:
            self.now_us += duration_us

    def empty(self, _shape, _dtype):
        return SimpleNamespace(
            nbytes=1,
            data=SimpleNamespace(memset_async=lambda *_: self.launch("flush", 500)),
            max=lambda out: None,
        )

    def synchronize(self):
        pass

    def begin_capture(self):
        self.capturing = True

    def end_capture(self):
        self.capturing = False
        return SimpleNamespace(launch=lambda _stream: self.launch("graph", 7))


class FakeEvent:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at_us = self.gpu.now_us

    def synchronize(self):
        pass


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeGpu()
    monkeypatch.setattr(timing, "load_cupy", lambda: fake)
    monkeypatch.setattr(timing, "sm_clock_reader", lambda: lambda: 1500)
    return fake


def works(gpu, **durations_us):
    return [
        Work(lambda name=name, us=us: gpu.launch(name, us)) for name, us in durations_us.items()
    ]


def test_real_samples_are_kept_and_the_flush_is_not_in_them(gpu):
    short, long = time_all(works(gpu, short=3, long=11), samples=5, warm_up_s=0)
    assert short.samples_us == pytest.approx([3] * 5)
    assert long.median_us == pytest.approx(11)
    assert long.quartiles_us == pytest.approx((11, 11))
    assert short.method == "events"
    assert short.sm_clock_mhz == 1500


def test_works_take_turns_and_each_starts_cold(gpu):
    time_all(works(gpu, a=1, b=1), samples=3, warm_up_s=0)
    taken = gpu.log[-12:]
    assert taken[::2] == ["flush"] * 6
    assert [sorted(taken[i : i + 4 : 2]) for i in (1, 5, 9)] == [["a", "b"]] * 3


def test_no_work_always_follows_the_same_other(gpu):
    samples = 20
    time_all(works(gpu, a=1, b=1, c=1), samples=samples, warm_up_s=0)
    taken = [name for name in gpu.log if name != "flush"][-3 * samples :]
    assert {before for before, name in pairwise(taken) if name == "a"} >= {"b", "c"}


def test_warm_up_comes_before_samples(gpu):
    time_all(works(gpu, a=1), samples=1, warm_up_s=0.02)
    assert gpu.log.count("a") > 4
    assert gpu.log.index("flush") == len(gpu.log) - 2


def test_a_work_that_fails_has_its_error_and_the_rest_have_times(gpu):
    def fail():
        raise ValueError("no such policy")

    failed, timed = time_all([Work(fail), *works(gpu, a=2)], samples=2, warm_up_s=0)
    assert isinstance(failed, ValueError)
    assert timed.samples_us == pytest.approx((2, 2))


def test_captured_work_is_replayed(gpu):
    (timed,) = time_all([Work(lambda: gpu.launch("a", 50), capture_graph)], samples=2, warm_up_s=0)
    assert timed.method == "graph"
    assert timed.median_us == pytest.approx(7)
    assert gpu.log.count("a") == 1


def test_work_that_cannot_be_captured_is_timed_by_events(gpu):
    def refuse(_enqueue):
        raise RuntimeError("cannot be captured")

    (timed,) = time_all([Work(lambda: gpu.launch("a", 50), refuse)], samples=2, warm_up_s=0)
    assert timed.method == "events"
    assert timed.median_us == pytest.approx(50)


def test_nothing_to_time(gpu):
    assert time_all([]) == []


def test_median_times_raise_what_stopped_a_launch(gpu):
    def fail():
        raise ValueError("broken")

    assert timing.median_times_us([lambda: gpu.launch("a", 1)]) == pytest.approx([7])
    with pytest.raises(ValueError, match="broken"):
        timing.median_times_us([fail])


def test_ties_are_within_one_percent():
    assert best_and_ties({"a": 100.9, "b": 100.0, "c": 101.1}) == ["b", "a"]


def test_quartiles_are_of_the_samples():
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0), "graph", None).quartiles_us == (2.0, 4.0)
