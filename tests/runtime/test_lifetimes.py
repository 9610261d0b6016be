"""What is read when: arguments of `plan` once, what lies on the GPU at every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, TorchTensor
from runtime_support import STREAM, launched, layer, plan, reserved, tensors


@pytest.mark.parametrize("stream", [STREAM, None])
@pytest.mark.parametrize("make", [layer, reserved])
def test_arguments_in_host_memory_may_change_once_plan_returns(
    gpu: FakeGpu, make: Any, stream: int | None
) -> None:
    attention = make()
    qo_indptr, kv_lens = np.array([0, 1, 41], np.int32), np.array([500, 90], np.int32)
    table = np.arange(2 * 40, dtype=np.int32).reshape(2, 40)
    attention.plan(qo_indptr, kv_lens, block_table=table, stream=stream)
    expected = table.copy()
    for array in (qo_indptr, kv_lens, table):
        array[...] = 7777
    for _ in range(2):  # the second stream, if there may be one, gets its copy later
        attention.run(**tensors(41), stream=STREAM if make is reserved else 8)
        (launch,) = launched(gpu)
        pages = gpu.read(int(launch.header["page_table"]), expected.nbytes)
        assert pages == expected.tobytes()
        assert set(launch.decode["kv_end"].tolist()) <= set(range(1, 501))


def test_page_tables_and_lengths_on_the_gpu_are_read_by_address(gpu: FakeGpu) -> None:
    attention = layer()
    lengths = TorchTensor((2,), 1 << 44, "torch.int32")
    plan(attention, device_kv_lens=lengths)
    attention.run(**tensors(41), stream=STREAM)
    (launch,) = launched(gpu)
    assert (launch.header["page_table"], launch.header["kv_lens"]) == (1 << 38, 1 << 44)


def test_plans_take_effect_in_the_order_of_their_stream(gpu: FakeGpu) -> None:
    attention = layer()
    plans = []
    for kv_len in (100, 200, 300):
        plan(attention, ([0, 1], [kv_len]))
        plans.append(attention.current_plan)
        for _ in range(2):
            attention.run(**tensors(1), stream=STREAM)
    lengths = [int(launch.decode["kv_end"].max()) for launch in launched(gpu)]
    assert lengths == [100, 100, 200, 200, 300, 300]
