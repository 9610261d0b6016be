"""What may not be captured, because the graph would outlive what it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu
from runtime_support import STREAM, layer, plan, table_of, tensors

import podrt


@pytest.mark.parametrize("table_on", ["gpu", "host"])
@pytest.mark.parametrize("stream", [None, 8])
def test_hybrid_attention_refuses_to_be_captured(
    gpu: FakeGpu, table_on: str, stream: int | None
) -> None:
    """Its buffers would be gone when the graph is replayed."""
    gpu.capturing = {stream or STREAM: 1}
    table: Any = table_of(1) if table_on == "gpu" else np.zeros((1, 10), np.int32)
    given = tensors(1)
    out = given.pop("out")
    with pytest.raises(RuntimeError, match="captured into a CUDA graph"):
        podrt.hybrid_attention(
            *given.values(), [0, 1], [50], block_table=table, out=out, stream=stream
        )
    assert gpu.graphs == {}
    gpu.capturing = {}
    podrt.hybrid_attention(*given.values(), [0, 1], [50], block_table=table, out=out, stream=stream)
    gpu.finish()
    assert len(gpu.launches) == 1


def test_plan_and_reserve_look_at_the_stream_that_they_would_use(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention, stream=8)
    gpu.capturing = {STREAM: 1}  # PyTorch's current stream
    with pytest.raises(RuntimeError, match="before the capture"):
        plan(attention, stream=None)
    with pytest.raises(RuntimeError, match="before the capture"):
        attention.reserve(1, 1, 100, workspace=table_of(1))
    plan(attention, stream=8)
