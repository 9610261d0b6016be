"""What a launch hands to a kernel: tensors, strides, buffers and sizes; nothing of the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from map_support import record_maps

from podrt.kernels.arguments import Buffers
from podrt.kernels.families import (
    Variant,
    argument_block,
    params_dtype,
    stand_ins,
    variant_for,
    why_unreadable,
)
from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.hopper.rows import CACHE_ROWS_DTYPE, row_steps, why_ungatherable
from podrt.kernels.portable.presets import variant
from podrt.spec.attention import make_spec
from podrt.spec.mask import Mask
from podrt.tensors.run_tensors import RunTensors
from podrt.tensors.view import view

HOPPER = hopper_variant("pod", "float16", 64, page_size=16)
GATHER = hopper_variant("pod", "float16", 64, page_size=4)
PORTABLE = variant("pod", "sm_90a", "float16", 64, page_size=16)
SPEC = make_spec(6, 2, 64, 16, "NHD", "float16", True, 0.125)
BUFFERS = Buffers(10_000, 10_001, 10_002, 10_003, 10_004)
Q, K, V, OUT, LSE, SINKS = AT = tuple(1 << bit for bit in range(20, 26))


@pytest.fixture(autouse=True)
def maps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of the maps asked for; each map is the bytes of its number, from 1."""
    return record_maps(monkeypatch)


def tensors_of(**changes: np.ndarray | None) -> RunTensors:
    cache = np.zeros((6, 16, 2, 64), np.float16)
    arrays = {
        "q": np.zeros((52, 6, 128), np.float16)[:, :, :64],
        "k_cache": cache,
        "v_cache": np.zeros((6, 2, 16, 64), np.float16).transpose(0, 2, 1, 3),
        "out": np.zeros((52, 6, 64), np.float16),
        "lse": np.zeros((6, 52), np.float32).T,
    } | changes
    views = [None if a is None else view(a, name) for name, a in arrays.items()]
    return RunTensors(*views, None, None, (True, True))  # type: ignore[arg-type]


def params_of(config: Variant, at: tuple[int, ...] = AT, **changes: np.ndarray | None) -> np.void:
    block = argument_block(config, SPEC, tensors_of(**changes), BUFFERS)
    address = block.point_to(*at, rows=52)
    assert block.point_to(*at, rows=52) == address
    return np.frombuffer(bytes(block), params_dtype(config), 1)[0]


@pytest.mark.parametrize("config", [HOPPER, PORTABLE])
def test_kernel_gets_tensors_buffers_and_sizes(config: Variant) -> None:
    params = params_of(config)
    assert [int(params[name]) for name in ("q", "out", "lse", "sinks")] == [Q, OUT, LSE, SINKS]
    assert tuple(int(params[name]) for name in Buffers._fields) == BUFFERS
    assert (params["q_stride_token"], params["q_stride_head"]) == (768, 128)
    assert (params["out_stride_token"], params["out_stride_head"]) == (384, 64)
    assert (params["lse_stride_token"], params["lse_stride_head"]) == (1, 52)
    assert (params["num_kv_heads"], params["group"]) == (2, 3)
    assert params["scale_log2"] == np.float32(0.125 * np.log2(np.e))


@pytest.mark.parametrize("config", [HOPPER, PORTABLE])
def test_scores_are_scaled_and_seen_from_the_first_key_on(config: Variant) -> None:
    params = params_of(config)
    assert params["window_left"] == 2**30
    assert (params["soft_cap_exponent"], params["sinks_stride"]) == (0, 0)


@pytest.mark.parametrize("config", [HOPPER, PORTABLE])
def test_kernel_gets_window_cap_and_sinks(config: Variant) -> None:
    layer = replace(SPEC, mask=Mask(True, 4096), logits_soft_cap=50.0)
    sinks = view(np.zeros((6, 2), np.float32)[:, 0], "sinks")
    block = argument_block(config, layer, replace(tensors_of(), sinks=sinks), BUFFERS)
    params = np.frombuffer(bytes(block), params_dtype(config), 1)[0]
    assert (params["window_left"], params["sinks_stride"]) == (4096, 2)
    assert params["soft_cap_exponent"] == np.float32(2 * np.log2(np.e) * 0.125 / 50)
    assert params["scale_log2"] == np.float32(50 * np.log2(np.e))


def test_hopper_kernel_gets_maps_of_tensors_where_they_lie(maps: list[tuple[Any, ...]]) -> None:
    params = params_of(HOPPER)
    asked = {number: pointer for number, (pointer, *_) in enumerate(maps, start=1)}
    for name, pointer in (
        ("q_map", Q),
        ("prefill_k_map", K),
        ("decode_k_map", K),
        ("prefill_v_map", V),
        ("decode_v_map", V),
    ):
        assert asked[params[name].tobytes()[0]] == pointer
    assert (params["k_head_blocks"], params["v_head_blocks"]) == (1, 16)
    assert params["tile_tokens"] == 42


def small_pages(num_pages: int = 6, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Caches with pages of 4, one in the order of heads, in it head strides of 72 elements."""
    keys = np.zeros((num_pages, 4, 2, 72), np.float16)[..., :64]
    values = np.zeros((num_pages, 2, 4, 64), np.float16).transpose(0, 2, 1, 3)
    return {"k_cache": keys, "v_cache": values} | changes


def test_kernels_that_gather_rows_get_how_they_lie(maps: list[tuple[Any, ...]]) -> None:
    params = params_of(GATHER, **small_pages())
    assert len(maps) == 1  # of queries
    assert maps[0][0] == Q
    for letter, pointer, expected in (
        ("k", K, (6, 4, 1, 2 * 144)),
        ("v", V, (6, 8, 1, 2 * 64)),
    ):
        assert params[f"prefill_{letter}_map"] == params[f"decode_{letter}_map"]
        rows = np.frombuffer(params[f"decode_{letter}_map"].tobytes(), CACHE_ROWS_DTYPE, 1)[0]
        assert rows.tolist() == (pointer, *expected)
    assert (params["k_head_blocks"], params["v_head_blocks"]) == (72 // 8, 4 * 64 // 8)


def test_rows_of_a_single_page_or_token_need_no_stride() -> None:
    one = np.lib.stride_tricks.as_strided(np.zeros(64, np.float16), (1, 1, 1, 64), (6, 10, 14, 2))
    assert row_steps(view(one, "k_cache"), "float16") == (1, 0, 0, 16)


def test_steps_of_rows_fit_32_bits_in_caches_of_any_size() -> None:
    shape, far = (2**17, 1, 8, 128), np.empty(1, np.float16)
    large = np.lib.stride_tricks.as_strided(far, shape, (2**30, 2048, 256, 2))  # 128 TiB
    cache = view(large, "k_cache")
    steps = row_steps(cache, "float16")
    assert steps.page_steps * steps.step_bytes == 2**30
    assert why_ungatherable(cache, "float16") is None
    uneven = np.lib.stride_tricks.as_strided(far, (2**17, 3, 8, 128), (2**30, 2064, 256, 2))
    assert "4294967294 steps of 16 bytes" in str(
        why_ungatherable(view(uneven, "v_cache"), "float16")
    )


def test_kernels_that_gather_rows_say_what_they_cannot_read() -> None:
    assert why_unreadable(GATHER, tensors_of(**small_pages())) is None
    backwards = tensors_of(**small_pages(v_cache=small_pages()["v_cache"][::-1]))
    assert "v_cache: got strides" in str(why_unreadable(GATHER, backwards))
    assert "none below 0" in str(why_unreadable(GATHER, backwards))
    with pytest.raises(ValueError, match=r'v_cache: got strides .* use policy="portable"'):
        argument_block(GATHER, SPEC, backwards, BUFFERS)


def test_portable_kernel_gets_strides_and_pages_of_the_caches() -> None:
    params = params_of(PORTABLE)
    assert [int(params[name]) for name in ("k", "v")] == [K, V]
    strides = [[int(params[f"{c}_stride_{a}"]) for a in ("page", "token", "head")] for c in "kv"]
    assert strides == [[2048, 128, 64], [2048, 64, 1024]]
    assert params["num_pages"] == 6


@pytest.mark.parametrize("config", [HOPPER, PORTABLE])
def test_a_launch_elsewhere_changes_addresses_alone(config: Variant) -> None:
    here, there = params_of(config), params_of(config, tuple(2 * address for address in AT))
    changed = {name for name in here.dtype.names or () if here[name] != there[name]}
    assert changed >= {"q", "out", "lse", "sinks"}
    assert not {name for name in changed if name.endswith("_map")} ^ (
        {name for name in here.dtype.names or () if name.endswith("_map")}
    )
    assert changed <= {"q", "k", "v", "out", "lse", "sinks"} | {
        name for name in here.dtype.names or () if name.endswith("_map")
    }


@pytest.mark.parametrize("config", [HOPPER, PORTABLE])
def test_without_lse_the_kernel_gets_a_null_pointer(config: Variant) -> None:
    assert params_of(config, (*AT[:4], 0, SINKS), lse=None)["lse"] == 0


def test_strides_of_single_extents_need_not_fit() -> None:
    one_page = np.lib.stride_tricks.as_strided(
        np.zeros((16, 2, 64), np.float16), (1, 16, 2, 64), (1 << 34, 256, 128, 2)
    )
    assert params_of(PORTABLE, k_cache=one_page)["k_stride_page"] == 0


def test_the_hopper_family_says_what_it_cannot_read() -> None:
    cache = np.zeros((6, 16, 2, 72), np.float16)
    assert why_unreadable(HOPPER, tensors_of()) is None
    backwards = tensors_of(v_cache=cache[::-1, :, :, :64])
    assert "v_cache: got strides (-2304, 144, 72, 1)" in str(why_unreadable(HOPPER, backwards))
    between = tensors_of(k_cache=cache[..., :64])
    assert "a multiple of 64 from a KV head" in str(why_unreadable(HOPPER, between))
    assert why_unreadable(PORTABLE, backwards) is None
    with pytest.raises(ValueError, match=r'k_cache: got strides .* use policy="portable"'):
        argument_block(HOPPER, SPEC, between, BUFFERS)


def caches_of(k_heads: slice, v_heads: slice) -> RunTensors:
    """Heads of 96, which are some of those side by side."""
    cache = np.zeros((6, 16, 8, 96), np.float16)
    return tensors_of(k_cache=cache[:, :, k_heads], v_cache=cache[:, :, v_heads])


EVEN, ODD, APART = slice(2, 4), slice(0, 3), slice(0, 4, 2)


@pytest.mark.parametrize(
    ("k_heads", "v_heads", "in_pairs"),
    [
        (EVEN, EVEN, True),
        (ODD, ODD, False),
        (APART, EVEN, False),
        (EVEN, APART, False),
        (APART, APART, False),
    ],
)
def test_tensors_decide_whether_heads_are_in_pairs(
    k_heads: slice, v_heads: slice, in_pairs: bool
) -> None:
    pair, one = (
        hopper_variant("pod", "float16", 96, page_size=16, head_pairs=pairs)
        for pairs in (True, False)
    )
    tensors = caches_of(k_heads, v_heads)
    assert variant_for(pair, tensors) == (pair if in_pairs else one)
    assert why_unreadable(pair, tensors) is None
    assert stand_ins(pair) == (one,)
    for other in (one, PORTABLE):
        assert variant_for(other, tensors) is other
        assert stand_ins(other) == ()


def test_a_stand_in_reads_no_more_than_any_other_kernel() -> None:
    pair = hopper_variant("pod", "float16", 96, page_size=16, head_pairs=True)
    backwards = np.zeros((6, 16, 2, 96), np.float16)[::-1]
    assert "none below 0" in str(why_unreadable(pair, tensors_of(k_cache=backwards)))
