"""Graphs of reserved objects, rehearsed without a GPU: one launch, whatever is planned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, TorchTensor
from runtime_support import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LIMITS,
    NUM_PAGES,
    PAGE_SIZE,
    capture,
    replayed,
    reserved,
    tensors,
)

import podrt
from podrt.plan import WorkList

MAX_PAGES = -(-LIMITS["max_kv_len"] // PAGE_SIZE)
TABLE = TorchTensor((LIMITS["max_requests"], MAX_PAGES), 1 << 30, "torch.int32")


def table_of(num_requests: int) -> Any:
    return TorchTensor((num_requests, MAX_PAGES), TABLE.pointer, "torch.int32")


def random_batch(rng: np.random.Generator, *, decodes: bool | None = None) -> tuple[Any, Any]:
    """Lengths within the limits: all decodes, none, or a mixture."""
    num = int(rng.integers(1, LIMITS["max_requests"] + 1))
    q_lens = rng.integers(0, 4, num)
    if decodes is False or (decodes is None and rng.random() < 0.6):
        q_lens[rng.integers(num)] = rng.integers(32, 280)
    if decodes is False:
        q_lens[q_lens < 32] = 0
    kv_lens = rng.integers(0, LIMITS["max_kv_len"] + 1, num)
    return np.cumsum([0, *q_lens]).astype(np.int32), kv_lens.astype(np.int32)


def require_same_items(got: WorkList, expected: WorkList) -> None:
    assert got.tobytes() == expected.tobytes()


def test_a_graph_of_windows_and_sinks_finds_items_and_sinks(gpu: FakeGpu) -> None:
    attention = reserved(window_left=100, logits_soft_cap=30.0)
    sinks = TorchTensor((HEADS,), 1 << 44, "torch.float32")
    graph = capture(gpu, attention, sinks=sinks)
    rng = np.random.default_rng(1)
    for _ in range(10):
        qo_indptr, kv_lens = random_batch(rng)
        attention.plan(qo_indptr, kv_lens, block_table=table_of(len(kv_lens)), stream=7)
        launch, plan = replayed(gpu, graph), attention.current_plan
        require_same_items(launch.prefill, plan.prefill)
        require_same_items(launch.decode, plan.decode)
        assert (int(launch.arguments["sinks"]), launch.arguments["window_left"]) == (1 << 44, 100)
        assert launch.variant.soft_cap


def test_replays_find_the_batch_that_was_planned_last(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention)
    rng = np.random.default_rng(0)
    for _ in range(30):
        qo_indptr, kv_lens = random_batch(rng)
        attention.plan(qo_indptr, kv_lens, block_table=table_of(len(kv_lens)), stream=7)
        launch, plan = replayed(gpu, graph), attention.current_plan
        require_same_items(launch.prefill, plan.prefill)
        require_same_items(launch.decode, plan.decode)
        assert launch.header["page_table"] == TABLE.pointer
        assert launch.header["kv_lens"] == 0


def test_a_capture_is_the_same_whatever_is_planned(gpu: FakeGpu) -> None:
    attention = reserved()
    rng = np.random.default_rng(1)
    graphs = [capture(gpu, attention)]
    for decodes in (None, None, True, False):
        qo_indptr, kv_lens = random_batch(rng, decodes=decodes)
        attention.plan(qo_indptr, kv_lens, block_table=table_of(len(kv_lens)), stream=7)
        graphs.append(capture(gpu, attention))
    launches = [replayed(gpu, graph) for graph in graphs]
    assert len({launch.variant for launch in launches}) == 1
    assert {launch.grid for launch in launches} == {launches[0].variant.ctas_per_sm * 132} or {
        launch.grid for launch in launches
    } == {launches[0].variant.ctas_per_sm * 108}
    assert len({launch.arguments.tobytes() for launch in launches}) == 1
    assert launches[0].variant.form == "pod"


def test_a_graph_of_decodes_has_the_decode_kernel_over_the_same_items(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention, rows=64, decodes_only=True)
    qo_indptr, kv_lens = random_batch(np.random.default_rng(2), decodes=True)
    attention.plan(qo_indptr, kv_lens, block_table=table_of(len(kv_lens)), stream=7)
    launch = replayed(gpu, graph)
    assert launch.variant.form == "decode"
    require_same_items(launch.decode, attention.current_plan.decode)
    assert [attention.are_decodes(n) for n in (1, 3, 100)] == [True, True, False]


def test_ordinary_runs_take_any_form_in_between(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention)
    rng = np.random.default_rng(3)
    for decodes, form in ((True, "decode"), (False, "prefill")):
        qo_indptr, kv_lens = random_batch(rng, decodes=decodes)
        attention.plan(qo_indptr, kv_lens, block_table=table_of(len(kv_lens)), stream=7)
        gpu.finish()
        gpu.launches.clear()
        attention.run(**tensors(int(qo_indptr[-1])), stream=7)
        gpu.finish()
        assert [launch.variant.form for launch in gpu.launches] == [form]
        require_same_items(replayed(gpu, graph).decode, attention.current_plan.decode)


def test_an_empty_batch_is_planned_and_captured(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention)
    assert len(replayed(gpu, graph).prefill) == 0
    attention.plan([0, 40], [70], block_table=table_of(1), stream=7)
    assert len(replayed(gpu, graph).prefill) > 0
    attention.plan([0], [], block_table=table_of(0), stream=7)
    launch = replayed(gpu, graph)
    assert (len(launch.prefill), len(launch.decode)) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_lens": [50, 3001]}, "max_kv_len=3000"),
        ({"qo_indptr": [0, 1, 322]}, "max_tokens=320"),
        ({"qo_indptr": list(range(14)), "kv_lens": [5] * 13}, "max_requests=12"),
    ],
)
def test_a_batch_beyond_the_limits_changes_no_byte(
    gpu: FakeGpu, changes: dict[str, Any], message: str
) -> None:
    attention = reserved()
    graph = capture(gpu, attention)
    attention.plan([0, 1, 2], [50, 60], block_table=table_of(2), stream=7)
    gpu.finish()
    before = {base: bytes(memory) for base, memory in gpu.memory.items()}
    batch: dict[str, Any] = {"qo_indptr": [0, 1, 2], "kv_lens": [50, 60]} | changes
    table = TorchTensor((len(batch["kv_lens"]), 400), TABLE.pointer, "torch.int32")
    with pytest.raises(ValueError, match=message):
        attention.plan(**batch, block_table=table, stream=7)
    gpu.finish()
    assert {base: bytes(memory) for base, memory in gpu.memory.items()} == before
    require_same_items(replayed(gpu, graph).decode, attention.current_plan.decode)


def test_batches_within_the_limits_fit_what_was_reserved(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention)
    rng = np.random.default_rng(4)
    allocations = gpu.allocations
    for _ in range(60):
        qo_indptr, kv_lens = random_batch(rng)
        pages = rng.integers(0, NUM_PAGES, (len(kv_lens), MAX_PAGES)).astype(np.int32)
        attention.plan(qo_indptr, kv_lens, block_table=pages, stream=7)
        gpu.finish()
    assert gpu.allocations <= allocations + 3  # staging memory, which grows with the plans
    launch = replayed(gpu, graph)
    copied = np.frombuffer(gpu.read(int(launch.header["page_table"]), pages.nbytes), np.int32)
    np.testing.assert_array_equal(copied, pages.reshape(-1))


def test_wide_page_tables_in_host_memory_are_cut_to_the_limit(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention)
    pages = np.arange(12 * 1000, dtype=np.int32).reshape(12, 1000) % NUM_PAGES
    attention.plan(list(range(13)), [3000] * 12, block_table=pages, stream=7)
    launch = replayed(gpu, graph)
    table = int(launch.header["page_table"])
    for item in launch.decode:
        entry = gpu.read(table + 4 * int(item["page_begin"]), 4 * MAX_PAGES)
        np.testing.assert_array_equal(
            np.frombuffer(entry, np.int32), pages[item["request"], :MAX_PAGES]
        )


def test_plans_in_flight_are_not_disturbed_by_the_next(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention)
    expected = []
    rng = np.random.default_rng(5)
    for _ in range(20):  # nothing is done meanwhile
        qo_indptr, kv_lens = random_batch(rng)
        attention.plan(qo_indptr, kv_lens, block_table=table_of(len(kv_lens)), stream=7)
        gpu.replay(graph, 7)
        expected.append(attention.current_plan)
    gpu.launches.clear()
    gpu.finish()
    assert len(gpu.launches) == 20
    for launch, plan in zip(gpu.launches, expected, strict=True):
        require_same_items(launch.prefill, plan.prefill)
        require_same_items(launch.decode, plan.decode)


def test_plans_and_reservations_refuse_a_stream_that_is_captured(gpu: FakeGpu) -> None:
    attention = reserved()
    gpu.capturing[7] = 1
    with pytest.raises(RuntimeError, match="plan\\(\\) and reserve\\(\\) before the capture"):
        attention.plan([0, 1], [5], block_table=table_of(1), stream=7)
    with pytest.raises(RuntimeError, match="before the capture"):
        attention.reserve(**LIMITS, stream=7)


def test_exact_lengths_are_read_on_the_gpu(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention)
    lengths = TorchTensor((LIMITS["max_requests"],), 1 << 44, "torch.int32")
    attention.plan([0, 1], [50], block_table=table_of(1), device_kv_lens=lengths, stream=7)
    assert replayed(gpu, graph).header["kv_lens"] == 1 << 44
    with pytest.raises(ValueError, match="device_kv_lens: has 12 entries, expected at least 13"):
        attention.plan(
            list(range(14)), [5] * 13, block_table=table_of(13), device_kv_lens=lengths, stream=7
        )


def test_objects_of_a_stream_share_a_workspace(gpu: FakeGpu) -> None:
    attention = podrt.HybridAttention(HEADS, KV_HEADS, HEAD_DIM, page_size=16, dtype="float16")
    nbytes = attention.workspace_bytes(**LIMITS)
    workspace = TorchTensor((nbytes,), 1 << 46, "torch.uint8")
    gpu.memory[1 << 46] = bytearray(nbytes)
    attention.reserve(**LIMITS, workspace=workspace, stream=7)
    other = podrt.HybridAttention(HEADS, KV_HEADS, 64, page_size=16, dtype="float16")
    smaller = LIMITS | {"max_requests": 2, "max_tokens": 40}
    other.reserve(**smaller, workspace=workspace, stream=7)
    first, second = (
        replayed(gpu, capture_of(gpu, attention, 128)).arguments,
        replayed(gpu, capture_of(gpu, other, 64)).arguments,
    )
    assert first["counters"] == second["counters"] == 1 << 46
    assert first["merge_counters"] == second["merge_counters"]
    assert first["plan"] != second["plan"]
    with pytest.raises(ValueError, match=f"has 99 bytes, expected at least the {nbytes}"):
        attention.reserve(**LIMITS, workspace=TorchTensor((99,), 1 << 46, "torch.uint8"))
    with pytest.raises(TypeError, match="workspace: got dtype float16, expected uint8"):
        attention.reserve(**LIMITS, workspace=TorchTensor((nbytes,), 1 << 46))


def capture_of(gpu: FakeGpu, attention: podrt.HybridAttention, head_dim: int) -> int:
    number = len(gpu.graphs) + 1
    gpu.capturing[7] = number
    given = tensors(8)
    for name, tensor in given.items():
        shape = (*tensor.shape[:-1], head_dim)
        given[name] = TorchTensor(shape, tensor.pointer)
    attention.run(**given, stream=7)
    del gpu.capturing[7]
    return number


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"max_requests": 0}, "max_requests=0"), ({"max_tokens": 1.5}, "max_tokens=1.5")],
)
def test_limits_are_checked(gpu: FakeGpu, limits: dict[str, Any], message: str) -> None:
    attention = podrt.HybridAttention(HEADS, KV_HEADS, HEAD_DIM)
    with pytest.raises((ValueError, TypeError), match=message):
        attention.reserve(**LIMITS | limits)


def test_a_contiguous_cache_that_is_too_short_for_the_limits_is_not_captured(
    gpu: FakeGpu,
) -> None:
    attention = reserved(page_size=None)
    small = TorchTensor((12, 2999, KV_HEADS, HEAD_DIM), 1 << 41)
    gpu.capturing[7] = 1
    with pytest.raises(ValueError, match="k_cache: has 12 rows of 2999 tokens; a graph for up to"):
        attention.run(**tensors(8) | {"k_cache": small, "v_cache": small}, stream=7)


def test_a_cache_without_pages_is_not_captured(gpu: FakeGpu) -> None:
    attention = reserved()
    none = TorchTensor((0, PAGE_SIZE, KV_HEADS, HEAD_DIM), 1 << 41)
    gpu.capturing[7] = 1
    with pytest.raises(ValueError, match="k_cache: has no pages; a graph needs the cache of its"):
        attention.run(**tensors(8) | {"k_cache": none, "v_cache": none}, stream=7)
