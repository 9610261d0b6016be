"""One object in several threads: every launch reads a whole plan, and needs no context before."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_gpu import FakeGpu
from runtime_support import LIMITS, STREAM, is_of, launched, layer, plan, reserved, tensors

BATCHES: Any = [([0, 1, 41], [500, 90]), ([0, 40, 41], [90, 700]), ([0, 41], [2000])]
ROUNDS = 60
LIMIT_S = 60


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_fresh_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(LIMIT_S)


def test_the_first_cuda_call_of_a_thread_may_be_any(gpu: FakeGpu) -> None:
    attention = layer()

    def run() -> None:
        attention.run(**tensors(41), stream=STREAM)

    for call in (lambda: plan(attention), run, lambda: plan(attention), run, run):
        in_fresh_thread(call)
    in_fresh_thread(lambda: attention.reserve(**LIMITS, stream=STREAM))
    in_fresh_thread(run)
    assert len(launched(gpu)) == 3  # after reserve the batch is empty


@pytest.mark.parametrize(("make", "one_stream"), [(layer, True), (layer, False), (reserved, True)])
def test_plans_beside_runs(gpu: FakeGpu, make: Any, one_stream: bool) -> None:
    attention = make()
    expected = []
    for batch in BATCHES:
        plan(attention, batch)
        expected.append(attention.current_plan)

    def plans() -> None:
        for turn in range(ROUNDS):
            plan(attention, BATCHES[turn % len(BATCHES)])

    def runs(stream: int) -> None:
        for _ in range(ROUNDS):
            attention.run(**tensors(41), stream=stream)

    streams = [STREAM, STREAM if one_stream else 8]
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(plans), *(pool.submit(runs, stream) for stream in streams)]
        for job in jobs:
            job.result(LIMIT_S)
    launches = launched(gpu)
    assert len(launches) == 2 * ROUNDS
    assert all(any(is_of(launch, one) for one in expected) for launch in launches)


def test_one_thread_is_let_in_at_a_time(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever launches or copies is not overtaken: launches change their arguments in place."""
    attention = layer()
    inside: list[str] = []
    for name in ("launch", "upload", "record", "allocate"):
        real = getattr(gpu, name)

        def alone(*args: Any, name: str = name, real: Any = real) -> Any:
            inside.append(name)
            time.sleep(1e-4)
            assert inside == [name]
            result = real(*args)
            inside.remove(name)
            return result

        monkeypatch.setattr(gpu, name, alone)
    plan(attention)

    def work(at: int) -> None:
        for turn in range(20):
            if at == turn % 3:
                plan(attention, BATCHES[turn % len(BATCHES)])
            attention.run(**tensors(41), stream=STREAM + at % 2)

    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(work, at) for at in range(3)]:
            job.result(LIMIT_S)
    assert len(launched(gpu)) == 60


def test_runs_of_several_threads_keep_their_tensors_apart(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, BATCHES[0])

    def runs(at: int) -> None:
        for _ in range(ROUNDS):
            given = tensors(41)
            for tensor in given.values():
                tensor.pointer += at << 24
            attention.run(**given, stream=STREAM)

    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(runs, at) for at in range(3)]:
            job.result(LIMIT_S)
    launches = launched(gpu)
    assert len(launches) == 3 * ROUNDS
    offsets = [{int(x.arguments[n]) & ((1 << 40) - 1) for n in ("q", "out")} for x in launches]
    assert all(len(found) == 1 for found in offsets)
