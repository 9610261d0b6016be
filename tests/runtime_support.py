"""A layer, its tensors and batches on a GPU of bytes (`fake_gpu`), for the tests of the runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_gpu import FakeGpu, Launch, TorchTensor

import podrt

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE, NUM_PAGES = 8, 2, 128, 16, 4096
STREAM = 7
LIMITS = {"max_requests": 12, "max_tokens": 320, "max_kv_len": 3000, "max_decode_tokens": 3}
#: Two requests, decode and prefill, and their pages.
BATCH: Any = ([0, 1, 41], [500, 90])


def layer(**options: Any) -> podrt.HybridAttention:
    """An object for pages of 16 in float16, unless told otherwise."""
    given = {"page_size": PAGE_SIZE, "dtype": "float16"} | options
    return podrt.HybridAttention(HEADS, KV_HEADS, HEAD_DIM, **given)


def reserved(**options: Any) -> podrt.HybridAttention:
    """The same, reserved for `LIMITS`."""
    attention = layer(**options)
    attention.reserve(**LIMITS, stream=STREAM)
    return attention


def table_of(num_requests: int, pointer: int = 1 << 38) -> Any:
    """A block table on the GPU."""
    return TorchTensor((num_requests, 400), pointer, "torch.int32")


def tensors(rows: int, **changes: Any) -> dict[str, Any]:
    """What `run` takes for a batch of so many rows; caches have pages."""
    cache = (NUM_PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM)
    return {
        "q": TorchTensor((rows, HEADS, HEAD_DIM), 1 << 40),
        "k_cache": TorchTensor(cache, 1 << 41),
        "v_cache": TorchTensor(cache, 1 << 42),
        "out": TorchTensor((rows, HEADS, HEAD_DIM), 1 << 43),
    } | changes


def plan(attention: podrt.HybridAttention, batch: Any = BATCH, **options: Any) -> None:
    """Plan a batch with a page table on the GPU."""
    qo_indptr, kv_lens = batch
    given = {"block_table": table_of(len(kv_lens)), "stream": STREAM} | options
    attention.plan(qo_indptr, kv_lens, **given)


def capture(
    gpu: FakeGpu,
    attention: podrt.HybridAttention,
    rows: int = 320,
    stream: int = STREAM,
    **options: Any,
) -> int:
    """Capture one run; return the graph's number."""
    number = len(gpu.graphs) + 1
    gpu.capturing[stream] = number
    try:
        attention.run(**tensors(rows), stream=stream, **options)
    finally:
        del gpu.capturing[stream]
    return number


def replayed(gpu: FakeGpu, graph: int, stream: int = STREAM) -> Launch:
    """Finish all work, replay a graph and return its launch."""
    gpu.finish()
    gpu.launches.clear()
    gpu.replay(graph, stream)
    gpu.finish()
    (launch,) = gpu.launches
    return launch


def launched(gpu: FakeGpu) -> list[Launch]:
    """Finish all work; return the launches since the last time."""
    gpu.finish()
    done, gpu.launches = gpu.launches, []
    return done


def is_of(launch: Launch, plan_: Any) -> bool:
    """Whether a launch found this plan, whole."""
    return (
        np.asarray(launch.prefill).tobytes() == plan_.prefill.tobytes()
        and np.asarray(launch.decode).tobytes() == plan_.decode.tobytes()
    )
