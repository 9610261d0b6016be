"""After an error the object is as it was, and computes what was planned before."""

from __future__ import annotations

from typing import Any

import pytest
from fake_gpu import FakeGpu, TorchTensor
from runtime_support import (
    BATCH,
    LIMITS,
    STREAM,
    capture,
    is_of,
    launched,
    layer,
    plan,
    replayed,
    reserved,
    table_of,
    tensors,
)

#: More items than the least memory of a plan holds, and split ones.
LARGER: Any = ([0, *range(1, 901)], [*[6000] * 4, *[40] * 896])


def test_a_plan_for_which_memory_runs_out_leaves_the_one_before(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    before = attention.current_plan
    for left in range(8):
        gpu.allocations_left = left
        try:
            plan(attention, LARGER)
            break
        except MemoryError:
            gpu.allocations_left = 1 << 30
        assert attention.current_plan is before
        attention.run(**tensors(41), stream=STREAM)
        (launch,) = launched(gpu)
        assert is_of(launch, before)
    assert left >= 2  # the plan's memory and the scratch


@pytest.mark.parametrize("call", ["upload", "record"])
def test_a_copy_that_fails_leaves_the_plan_before(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    attention = reserved()
    graph = capture(gpu, attention, 64)
    plan(attention)
    before = attention.current_plan
    with monkeypatch.context() as broken:
        broken.setattr(gpu, call, lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            plan(attention, ([0, 1], [50]))
    assert attention.current_plan is before
    attention.run(**tensors(41), stream=STREAM)
    (launch,) = launched(gpu)
    assert is_of(launch, before)
    assert is_of(replayed(gpu, graph), before)


def test_a_reservation_for_which_memory_runs_out_changes_nothing(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    before = attention.current_plan
    for left in range(8):
        gpu.allocations_left = left
        try:
            attention.reserve(**LIMITS, stream=STREAM)
            break
        except MemoryError:
            gpu.allocations_left = 1 << 30
        assert attention.current_plan is before
        with pytest.raises(RuntimeError, match=r"call reserve\(\) first"):
            attention.are_decodes(1)
        attention.run(**tensors(41), stream=STREAM)
        (launch,) = launched(gpu)
        assert is_of(launch, before)
    assert left >= 2


@pytest.mark.parametrize("call", ["clear", "upload"])
def test_a_second_reservation_that_fails_leaves_the_first(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    attention = reserved()
    graph = capture(gpu, attention, 64)
    with monkeypatch.context() as broken:
        broken.setattr(gpu, call, lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            attention.reserve(**LIMITS | {"max_requests": 1}, stream=STREAM)
    plan(attention)
    assert is_of(replayed(gpu, graph), attention.current_plan)


def test_a_launch_that_fails_can_be_repeated(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = layer()
    plan(attention)
    for _ in range(2):  # the long way, then the short one
        with monkeypatch.context() as broken:
            broken.setattr(gpu, "_require_context", lambda: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                attention.run(**tensors(41), stream=STREAM)
        attention.run(**tensors(41), stream=STREAM)
        (launch,) = launched(gpu)
        assert is_of(launch, attention.current_plan)


def test_a_run_that_is_refused_launches_nothing(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    attention.run(**tensors(41), stream=STREAM)
    launched(gpu)
    wrong = TorchTensor((40, 8, 128), 1 << 40)
    for _ in range(2):
        with pytest.raises(ValueError, match="q: got shape"):
            attention.run(**tensors(41, q=wrong), stream=STREAM)
    assert launched(gpu) == []
    attention.run(**tensors(41), stream=STREAM)
    assert len(launched(gpu)) == 1


def test_a_kernel_that_does_not_compile_leaves_the_plan_before(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    from podrt.runtime import session

    attention = layer()
    plan(attention)
    before = attention.current_plan
    with monkeypatch.context() as broken:
        broken.setattr(session, "load_kernel", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            plan(attention, ([0, 1], [50]), block_table=table_of(1))
        with pytest.raises(ZeroDivisionError):
            attention.reserve(**LIMITS, stream=STREAM)
    assert attention.current_plan is before
    plan(attention, BATCH)
    attention.run(**tensors(41), stream=STREAM)
    assert len(launched(gpu)) == 1
