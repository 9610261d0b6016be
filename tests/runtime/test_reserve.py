"""`reserve`: twice, after ordinary runs, and which stream plans go to."""

from __future__ import annotations

import gc
import weakref

import numpy as np
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
    tensors,
)


def test_graphs_of_an_earlier_reservation_keep_the_memory_that_they_read(gpu: FakeGpu) -> None:
    """They compute the batch that was planned before; new graphs the new one."""
    attention = reserved()
    plan(attention)
    earlier, before = capture(gpu, attention), attention.current_plan
    held = gpu.bytes_held
    attention.reserve(**LIMITS, stream=STREAM)
    later = capture(gpu, attention)
    plan(attention, ([0, 1], [50]))
    assert is_of(replayed(gpu, earlier), before)
    assert is_of(replayed(gpu, later), attention.current_plan)
    attention.release_graphs()
    gc.collect()
    assert gpu.bytes_held == held
    assert is_of(replayed(gpu, later), attention.current_plan)


def test_release_graphs_does_not_forget_graphs_of_this_reservation(gpu: FakeGpu) -> None:
    attention = reserved()
    plan(attention)
    graph, before = capture(gpu, attention), attention.current_plan
    attention.release_graphs()
    attention.reserve(**LIMITS, stream=STREAM)
    gc.collect()
    assert is_of(replayed(gpu, graph), before)


def test_a_reservation_without_graphs_is_given_back_by_the_next(gpu: FakeGpu) -> None:
    attention = reserved()
    held = gpu.bytes_held
    for _ in range(3):
        attention.reserve(**LIMITS, stream=STREAM)
        gc.collect()
        assert gpu.bytes_held == held


def test_memory_of_ordinary_runs_is_given_back(gpu: FakeGpu) -> None:
    only_reserved = reserved()
    held = gpu.bytes_held
    attention = layer()
    plan(attention)
    for stream in (STREAM, 8, 9):
        attention.run(**tensors(41), stream=stream)
    expected = attention.current_plan
    attention.reserve(**LIMITS, stream=STREAM)
    gc.collect()
    assert gpu.bytes_held == 2 * held
    assert all(is_of(launch, expected) for launch in launched(gpu))
    assert only_reserved.are_decodes(1)


def test_an_object_says_whether_it_is_reserved(gpu: FakeGpu) -> None:
    attention = layer()
    assert not attention.is_reserved
    plan(attention)
    assert not attention.is_reserved
    attention.reserve(**LIMITS, stream=STREAM)
    assert attention.is_reserved


def test_smaller_and_larger_limits(gpu: FakeGpu) -> None:
    attention = reserved()
    with pytest.raises(ValueError, match="max_kv_len=3000"):
        plan(attention, ([0, 1], [3001]))
    attention.reserve(**LIMITS | {"max_kv_len": 3001}, stream=STREAM)
    graph = capture(gpu, attention)
    plan(attention, ([0, 1], [3001]))
    assert is_of(replayed(gpu, graph), attention.current_plan)
    attention.reserve(**LIMITS | {"max_requests": 1}, stream=STREAM)
    with pytest.raises(ValueError, match="max_requests=1 "):
        plan(attention, BATCH)


def test_graphs_of_ordinary_runs_hold_their_batch_after_reserve(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    graph, before = capture(gpu, attention, 41), attention.current_plan
    attention.reserve(**LIMITS, stream=STREAM)
    plan(attention, ([0, 1], [50]))
    assert is_of(replayed(gpu, graph), before)


@pytest.mark.parametrize("has_run", [True, False])
def test_plans_that_name_no_stream_reach_the_graphs(gpu: FakeGpu, has_run: bool) -> None:
    """Lengths and page table in host memory tell no stream; nothing is copied by the graph."""
    attention = reserved()
    if has_run:
        attention.run(**tensors(8), stream=STREAM)
    attention.plan([0, 1], [50], block_table=np.zeros((1, 10), np.int32))
    graph = capture(gpu, attention)
    assert is_of(replayed(gpu, graph), attention.current_plan)
    attention.plan([0, 2], [90], block_table=np.zeros((1, 10), np.int32))
    assert is_of(replayed(gpu, graph), attention.current_plan)


def test_memory_of_the_caller_is_kept_alive(gpu: FakeGpu) -> None:
    attention = layer()
    nbytes = attention.workspace_bytes(**LIMITS)
    workspace = TorchTensor((nbytes,), 1 << 46, "torch.uint8")
    gpu.memory[1 << 46] = bytearray(nbytes)
    attention.reserve(**LIMITS, workspace=workspace, stream=STREAM)
    kept = weakref.ref(workspace)
    del workspace
    gc.collect()
    assert kept() is not None
    attention.reserve(**LIMITS, stream=STREAM)
    gc.collect()
    assert kept() is None


def test_no_more_than_workspace_bytes_is_written_of_what_the_caller_brings(gpu: FakeGpu) -> None:
    attention = layer()
    nbytes = attention.workspace_bytes(**LIMITS)
    gpu.memory[1 << 46] = bytearray(b"\x55" * nbytes)  # writing beyond it is an error
    workspace = TorchTensor((nbytes,), 1 << 46, "torch.uint8")
    attention.reserve(**LIMITS, workspace=workspace, stream=STREAM)
    gpu.finish()
    launch = replayed(gpu, capture(gpu, attention))
    counters = gpu.read(1 << 46, int(launch.arguments["partial_lse"]) - (1 << 46))
    assert not any(counters)


def test_workspace_bytes_allocates_and_loads_nothing(gpu: FakeGpu) -> None:
    attention = layer()
    assert attention.workspace_bytes(**LIMITS) > 0
    assert (gpu.allocations, gpu.functions) == (0, [])
    assert attention.workspace_bytes(256, 8192, 131072) < (64 << 20) * 1.1  # partials: 64 MiB


def test_limits_may_be_integers_of_numpy(gpu: FakeGpu) -> None:
    attention = layer()
    limits = {name: np.int64(limit) for name, limit in LIMITS.items()}
    assert attention.workspace_bytes(**limits) == attention.workspace_bytes(**LIMITS)
    attention.reserve(**limits, stream=STREAM)
    plan(attention)


def test_reserved_variants_are_those_that_graphs_hold(gpu: FakeGpu) -> None:
    with pytest.raises(RuntimeError, match=r"reserved_variants.*reserve\(\)"):
        _ = layer().reserved_variants
    attention = reserved()
    plan(attention)
    graphs = [capture(gpu, attention, decodes_only=only) for only in (False, True)]
    assert attention.reserved_variants == tuple(replayed(gpu, graph).variant for graph in graphs)
