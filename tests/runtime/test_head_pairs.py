"""Kernels for KV heads in pairs, and those that run their plans where heads do not lie so."""

from __future__ import annotations

from typing import Any

import pytest
from fake_gpu import H100, FakeGpu, TorchTensor, install
from runtime_support import HEADS, KV_HEADS, LIMITS, NUM_PAGES, PAGE_SIZE, STREAM, is_of, launched
from runtime_support import plan as plan_batch

import podrt

HEAD_DIM = 96
SHAPE = (NUM_PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install(monkeypatch, H100)


def layer(**options: Any) -> podrt.HybridAttention:
    given = {"page_size": PAGE_SIZE, "dtype": "float16"} | options
    return podrt.HybridAttention(HEADS, KV_HEADS, HEAD_DIM, **given)


def tensors(head_stride: int = HEAD_DIM, rows: int = 41) -> dict[str, Any]:
    """Keys whose heads lie side by side, and values whose heads are so far apart."""
    token = KV_HEADS * head_stride
    strides = (PAGE_SIZE * token, token, head_stride, 1)
    return {
        "q": TorchTensor((rows, HEADS, HEAD_DIM), 1 << 40),
        "k_cache": TorchTensor(SHAPE, 1 << 41),
        "v_cache": TorchTensor(SHAPE, 1 << 42, strides=strides),
        "out": TorchTensor((rows, HEADS, HEAD_DIM), 1 << 43),
    }


@pytest.mark.parametrize("options", [{}, {"policy": "hopper"}, {"deterministic": True}], ids=str)
def test_the_same_plan_runs_with_heads_in_pairs_and_apart(
    hopper: FakeGpu, options: dict[str, Any]
) -> None:
    attention = layer(**options)
    plan_batch(attention)
    (planned,) = attention.variants
    assert isinstance(planned, podrt.HopperConfig) and planned.head_pairs
    for head_stride, in_pairs in ((96, True), (192, False), (96, True), (104, False)):
        for _ in range(2):
            attention.run(**tensors(head_stride), stream=STREAM)
            (launch,) = launched(hopper)
            assert (launch.variant.form, launch.variant.head_pairs) == ("pod", in_pairs)
            assert is_of(launch, attention.current_plan)
            assert attention.variants == (planned,)


def test_heads_may_be_fixed_to_come_one_by_one(hopper: FakeGpu) -> None:
    attention = layer(policy=podrt.Policy(family="hopper", head_pairs=False))
    plan_batch(attention)
    attention.run(**tensors(), stream=STREAM)
    assert [launch.variant.head_pairs for launch in launched(hopper)] == [False]


@pytest.mark.parametrize("options", [{}, {"deterministic": True}], ids=str)
@pytest.mark.parametrize(("head_stride", "in_pairs"), [(96, True), (192, False)])
def test_a_capture_finds_either_kernel_loaded(
    hopper: FakeGpu, head_stride: int, in_pairs: bool, options: dict[str, Any]
) -> None:
    attention = layer(**options)
    attention.reserve(**LIMITS | {"max_decode_tokens": 1}, stream=STREAM)
    loaded = list(hopper.functions)
    hopper.capturing[STREAM] = 1
    attention.run(**tensors(head_stride, LIMITS["max_tokens"]), stream=STREAM)
    del hopper.capturing[STREAM]
    assert hopper.functions == loaded
    plan_batch(attention)
    hopper.finish()
    hopper.launches.clear()
    hopper.replay(1, STREAM)
    (launch,) = launched(hopper)
    assert (launch.variant.form, launch.variant.head_pairs) == ("pod", in_pairs)
    assert is_of(launch, attention.current_plan)
