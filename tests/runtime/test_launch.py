"""From a variant, a plan and tensors to what the kernel is launched with."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from plan_support import tiling_of

from podrt import knobs
from podrt.errors import MissingKernelError
from podrt.kernels.families import Variant
from podrt.kernels.hopper import host as hopper
from podrt.kernels.hopper import maps as hopper_maps
from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import make_plan
from podrt.runtime import launch as launch_module
from podrt.spec.batch import HybridBatch
from podrt.tensors.view import view

CONFIG = variant("pod", "sm_90a", "float16", 64, page_size=16)
BATCH = HybridBatch.from_block_table(
    np.array([0, 1, 30], np.int32),
    np.array([20, 40], np.int32),
    shape=(2, 3),
    row_stride=3,
    page_size=16,
)
PLAN = make_plan(BATCH, tiling_of(CONFIG, 4, 4), num_kv_heads=2, group=4, causal=True)
BUFFERS = ("items", "partial_o", "partial_lse", "counters", "merge_counters")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Launches, caught instead of made."""
    launches: list[dict[str, Any]] = []

    def kernel(grid: int, params: np.ndarray, **settings: Any) -> None:
        launches.append({"grid": grid, "params": params[0].copy(), **settings})

    monkeypatch.setattr(launch_module, "load_kernel", lambda config, device: kernel)
    return launches


def launch(config: Variant = CONFIG, *, with_lse: bool = True) -> None:
    cache = np.zeros((6, 16, 2, 64), np.float16)
    views = {
        "q": np.zeros((30, 8, 128), np.float16)[:, :, :64],
        "k_cache": cache,
        "v_cache": cache[:, ::2],
        "out": np.zeros((30, 8, 64), np.float16),
        "lse": np.zeros((8, 30), np.float32).T if with_lse else None,
    }
    tensors = {
        name: None if array is None else dataclasses.replace(view(array, name), pointer=1024 * n)
        for n, (name, array) in enumerate(views.items(), start=1)
    }
    workspace = {
        name: SimpleNamespace(data=SimpleNamespace(ptr=10_000 + n))
        for n, name in enumerate(BUFFERS)
    }
    launch_module.launch(
        config,
        device=0,
        num_sms=4,
        stream=77,
        plan=PLAN,
        page_table=5000,
        tensors=SimpleNamespace(**tensors),
        workspace=SimpleNamespace(**workspace),
        sm_scale=0.125,
    )


def test_kernel_gets_tensors_buffers_and_sizes(launched: list[dict[str, Any]]) -> None:
    launch()
    (made,) = launched
    params = {name: made["params"][name].item() for name in made["params"].dtype.names}
    assert [params[name] for name in ("q", "k", "v", "out", "lse")] == [
        1024, 2048, 3072, 4096, 5120,
    ]  # fmt: skip
    assert params["page_table"] == 5000
    assert [params[name] for name in BUFFERS] == [10_000 + n for n in range(5)]
    strides = {name: value for name, value in params.items() if "stride" in name}
    assert strides == {
        "q_stride_token": 1024,
        "q_stride_head": 128,
        "k_stride_page": 2048,
        "k_stride_token": 128,
        "k_stride_head": 64,
        "v_stride_page": 2048,
        "v_stride_token": 256,
        "v_stride_head": 64,
        "out_stride_token": 512,
        "out_stride_head": 64,
        "lse_stride_token": 1,
        "lse_stride_head": 30,
    }
    assert (params["num_prefill_items"], params["num_decode_items"]) == (1, 1)
    assert (params["num_kv_heads"], params["group"]) == (2, 4)
    assert params["scale_log2"] == np.float32(0.125 * math.log2(math.e))


def test_launch_settings_are_those_of_the_variant(launched: list[dict[str, Any]]) -> None:
    launch()
    (made,) = launched
    assert made["stream_handle"] == 77
    assert (made["threads"], made["smem_bytes"]) == (CONFIG.threads, CONFIG.smem_bytes)
    # Two prefill units, and two decode units that share one CTA.
    assert made["grid"] == (3,)


def test_hopper_launch(launched: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    no_maps = hopper_maps.CacheMaps(bytes(128), bytes(128), 0)
    monkeypatch.setattr(hopper, "cache_maps", lambda *_: no_maps)
    monkeypatch.setattr(hopper, "query_map", lambda *_, **__: bytes(128))
    config = hopper_variant("pod", "float16", 64, page_size=16)
    launch(config)
    (made,) = launched
    assert (made["threads"], made["smem_bytes"]) == (config.threads, config.smem_bytes)
    assert made["params"].dtype == hopper.PARAMS_DTYPE
    assert made["params"]["tile_tokens"] == 32
    assert made["grid"] == (4,)  # two prefill units and two decode units
    assert made["stream_handle"] == 77


def test_without_lse_the_kernel_gets_a_null_pointer(launched: list[dict[str, Any]]) -> None:
    launch(with_lse=False)
    assert launched[0]["params"]["lse"] == 0


def test_compile_variant_says_which_kernel_is_missing() -> None:
    with (
        knobs.scope(disable_cache=True, disable_jit=True),
        pytest.raises(MissingKernelError, match=r"pod_portable_sm_90a_f16_d64_.*r3to7"),
    ):
        launch_module.compile_variant(variant("pod", "sm_90a", "float16", 64, ratio=(3, 7)))
