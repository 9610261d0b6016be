"""Host side of the Hopper family: grid and argument block."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from map_support import record_maps
from plan_support import tiling_of
from spec_support import spec_of

from podrt.kernels.hopper import host as hopper
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.presets import hopper_variant
from podrt.plan import Plan, make_plan
from podrt.spec.batch import HybridBatch
from podrt.tensors.view import TensorView, view

FUSED = hopper_variant("pod", "float16", 64, page_size=16)
GROUP, NUM_KV_HEADS = 3, 2
BUFFERS = ("plan", "partial_o", "partial_lse", "counters", "merge_counters")


def plan_of(q_lens: list[int], kv_lens: list[int]) -> Plan:
    batch = HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )
    tiling = tiling_of(FUSED, 132, GROUP)
    return make_plan(batch, tiling, spec_of(NUM_KV_HEADS, GROUP))


PLAN = plan_of([1, 50, 1], [20, 50, 7])  # 50 tokens of 3 heads are two tiles


@pytest.mark.parametrize(
    ("form", "num_sms", "ctas"),
    [("pod", 132, 8), ("pod", 5, 5), ("prefill", 132, 4), ("decode", 132, 4), ("decode", 3, 3)],
)
def test_grid_is_a_cta_per_sm_or_fewer(form: str, num_sms: int, ctas: int) -> None:
    config = hopper_variant(form, "float16", 64)  # type: ignore[arg-type]
    assert hopper.num_ctas(config, PLAN, num_sms) == ctas


def test_no_work_is_no_cta() -> None:
    assert hopper.num_ctas(FUSED, plan_of([0], [5]), 132) == 0


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of the maps asked for; each map is the bytes of its number, from 1."""
    return record_maps(monkeypatch)


def tensors_of(**changes: np.ndarray | None) -> dict[str, TensorView | None]:
    cache = np.zeros((6, 16, 2, 64), np.float16)
    arrays = {
        "q": np.zeros((52, 6, 128), np.float16)[:, :, :64],
        "k_cache": cache,
        "v_cache": cache[:, :, :, :],
        "out": np.zeros((52, 6, 64), np.float16),
        "lse": np.zeros((6, 52), np.float32).T,
    } | changes
    return {
        name: None if array is None else dataclasses.replace(view(array, name), pointer=1024 * n)
        for n, (name, array) in enumerate(arrays.items(), start=1)
    }


def params_of(
    config: HopperConfig = FUSED, plan: Plan = PLAN, **changes: np.ndarray | None
) -> np.void:
    workspace = {
        name: SimpleNamespace(data=SimpleNamespace(ptr=10_000 + n))
        for n, name in enumerate(BUFFERS)
    }
    tensors: Any = SimpleNamespace(**tensors_of(**changes))
    buffers: Any = SimpleNamespace(**workspace)
    block = hopper.params_of(config, plan, tensors, buffers, 0.125)
    return block[0]


def test_kernel_gets_tensors_buffers_and_sizes(maps: list[tuple[Any, ...]]) -> None:
    params = params_of()
    keys, values = ("prefill_k_map", "decode_k_map"), ("prefill_v_map", "decode_v_map")
    for number, name in enumerate([*keys, *values, "q_map"], start=1):
        assert params[name].tobytes() == bytes([number]) * 128
    assert [pointer for pointer, *_ in maps] == [2048, 2048, 3072, 3072, 1024]
    assert (params["k_head_blocks"], params["v_head_blocks"]) == (1, 1)
    assert [int(params[name]) for name in ("q", "out", "lse")] == [1024, 4096, 5120]
    assert [int(params[name]) for name in BUFFERS] == [10_000 + n for n in range(5)]
    assert (params["q_stride_token"], params["q_stride_head"]) == (768, 128)
    assert (params["out_stride_token"], params["out_stride_head"]) == (384, 64)
    assert (params["lse_stride_token"], params["lse_stride_head"]) == (1, 52)
    assert (params["num_kv_heads"], params["group"]) == (NUM_KV_HEADS, GROUP)
    assert params["tile_tokens"] == 42
    assert params["scale_log2"] == np.float32(0.125 * np.log2(np.e))


def test_arguments_do_not_depend_on_the_batch(maps: list[tuple[Any, ...]]) -> None:
    """What depends on it lies in the header: a captured launch serves any plan."""
    blocks = []
    for plan in (PLAN, plan_of([1], [7]), dataclasses.replace(PLAN, decode_only_ctas=3)):
        maps.clear()
        blocks.append(params_of(plan=plan).tobytes())
    assert len(set(blocks)) == 1


def test_without_lse_the_kernel_gets_a_null_pointer(maps: list[tuple[Any, ...]]) -> None:
    assert params_of(lse=None)["lse"] == 0
