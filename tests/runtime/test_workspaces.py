"""Which memory a launch uses: streams and captures have their own, and give it back."""

from __future__ import annotations

import gc
from typing import Any

from fake_gpu import FakeGpu, TorchTensor
from runtime_support import (
    BATCH,
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

from podrt.runtime.workspaces import MOST_STREAMS

#: Long enough that its prefill and its decode are split and merged.
SPLIT: Any = ([0, 1, 41], [6000, 6000])


def run_on(gpu: FakeGpu, attention: Any, *streams: int) -> list[Any]:
    for stream in streams:
        attention.run(**tensors(41), stream=stream)
    return launched(gpu)


def buffers_of(launch: Any) -> tuple[int, ...]:
    names = ("plan", "partial_o", "partial_lse", "counters", "merge_counters")
    return tuple(int(launch.arguments[name]) for name in names)


def test_every_stream_has_buffers_of_its_own(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, SPLIT)
    launches = run_on(gpu, attention, 7, 8, 7, 9, 8)
    assert all(is_of(launch, attention.current_plan) for launch in launches)
    of_stream = {launch.stream: buffers_of(launch) for launch in launches}
    assert all(buffers_of(launch) == of_stream[launch.stream] for launch in launches)
    assert len({address for buffers in of_stream.values() for address in buffers}) == 15


def test_a_handle_that_is_used_again_is_another_stream(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, SPLIT)
    (before,) = run_on(gpu, attention, 7)
    gpu.stream_keys[7] = "made after the first was destroyed"
    (after,) = run_on(gpu, attention, 7)
    assert not set(buffers_of(before)) & set(buffers_of(after))


def test_the_stream_that_was_unused_longest_is_given_up(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, SPLIT)
    run_on(gpu, attention, *range(100, 100 + MOST_STREAMS))
    held = gpu.bytes_held
    before = run_on(gpu, attention, 100)
    launches = run_on(gpu, attention, 7, 200, 100, 101)
    assert gpu.bytes_held == held
    assert buffers_of(launches[2]) == buffers_of(before[0])
    assert all(is_of(launch, attention.current_plan) for launch in launches)


def test_memory_that_is_given_up_is_still_read_by_what_was_launched_before(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, SPLIT)
    for stream in range(100, 100 + 3 * MOST_STREAMS):  # nothing is done meanwhile
        attention.run(**tensors(41), stream=stream)
    launches = launched(gpu)
    assert len(launches) == 3 * MOST_STREAMS
    assert all(is_of(launch, attention.current_plan) for launch in launches)


def test_buffers_that_grow_are_still_read_by_what_was_launched_before(gpu: FakeGpu) -> None:
    attention = layer()
    plans = []
    for length in (100, 1000, 5000, 20000):
        table = TorchTensor((2, 2000), 1 << 38, "torch.int32")
        plan(attention, ([0, 1, 41], [length, length]), block_table=table)
        attention.run(**tensors(41), stream=STREAM)
        plans.append(attention.current_plan)
    for launch, expected in zip(launched(gpu), plans, strict=True):
        assert is_of(launch, expected)


def test_captures_have_buffers_of_their_own(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, SPLIT)
    first = attention.current_plan
    graphs = [capture(gpu, attention, 41) for _ in range(2)]
    plan(attention, ([0, 1], [50]))
    graphs.append(capture(gpu, attention, 1))
    launches = [replayed(gpu, graph) for graph in graphs]
    assert len({address for launch in launches for address in buffers_of(launch)[:1]}) == 3
    assert not set(buffers_of(launches[0])) & set(buffers_of(launches[1]))
    assert [is_of(launch, first) for launch in launches] == [True, True, False]


def test_layers_of_one_capture_share_buffers(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, SPLIT)
    gpu.capturing[STREAM] = 1
    for _ in range(2):
        attention.run(**tensors(41), stream=STREAM)
    del gpu.capturing[STREAM]
    gpu.replay(1, STREAM)
    one, other = launched(gpu)
    assert buffers_of(one) == buffers_of(other)


def test_a_graph_keeps_the_page_table_that_it_reads(gpu: FakeGpu) -> None:
    import weakref

    attention = layer()
    table = TorchTensor((2, 400), 1 << 38, "torch.int32")
    plan(attention, block_table=table)
    capture(gpu, attention, 41)
    kept = weakref.ref(table)
    del table
    plan(attention, block_table=TorchTensor((2, 400), 1 << 39, "torch.int32"))
    gc.collect()
    assert kept() is not None
    attention.release_graphs()
    gc.collect()
    assert kept() is None


def test_release_graphs_gives_back_what_graphs_read_and_nothing_else(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, SPLIT)
    run_on(gpu, attention, STREAM)
    held = gpu.bytes_held
    for _ in range(3):
        capture(gpu, attention, 41)
    assert gpu.bytes_held > held
    attention.release_graphs()
    gc.collect()
    assert gpu.bytes_held == held
    (launch,) = run_on(gpu, attention, STREAM)
    assert is_of(launch, attention.current_plan)


def test_release_graphs_leaves_a_reservation_as_it_is(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention)
    attention.release_graphs()
    gc.collect()
    plan(attention, BATCH)
    assert is_of(replayed(gpu, graph), attention.current_plan)


def test_nothing_is_held_once_the_object_is_gone(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, SPLIT)
    run_on(gpu, attention, 7, 8)
    attention.reserve(12, 320, 6000, stream=STREAM)
    plan(attention, SPLIT)
    run_on(gpu, attention, STREAM)
    capture(gpu, attention, 41)
    del attention
    gc.collect()
    assert gpu.bytes_held == 0
