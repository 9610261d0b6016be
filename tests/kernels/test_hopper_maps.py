"""Tensor maps of the Hopper kernels: what a bulk copy takes from queries and caches."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
import pytest
from map_support import record_maps

from podrt.kernels.hopper import maps as hopper_maps
from podrt.kernels.hopper.config import KV_TILES
from podrt.kernels.hopper.maps import CacheMaps, QueryMaps, cache_maps
from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.hopper.shared_memory import DECODE_KEYS
from podrt.tensors.view import view


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Pointer, shape, strides, box and type of the maps asked for, innermost axis first."""
    return record_maps(monkeypatch)


def mapped(cache: np.ndarray, kv_tile: int = 112, page_size: int | None = 16) -> CacheMaps:
    config = hopper_variant("prefill", "float16", cache.shape[3], page_size=page_size)
    return cache_maps(view(cache, "k_cache"), replace(config, kv_tile=kv_tile))


def offsets_of(asked: tuple[Any, ...], *start: int) -> np.ndarray:
    """Return where in memory the elements of a copy lie, in elements and in the copy's order."""
    _, shape, strides, box, _ = asked
    grid = np.indices(box[::-1])[::-1]
    steps = [(at + index) * step for at, index, step in zip(start, grid, strides, strict=True)]
    inside = [at + index < extent for at, index, extent in zip(start, grid, shape, strict=True)]
    return np.where(np.all(inside, axis=0), np.sum(steps, axis=0), -1)


def test_queries_come_by_tokens_of_whole_groups(maps: list[tuple[Any, ...]]) -> None:
    q = np.zeros((52, 6, 128), np.float16)[:, :, :64]
    queries = QueryMaps(view(q, "q"), group=3, tokens=42, dtype="float16")
    first = queries.at(4096, 52)
    assert queries.at(4096, 52) == first != queries.at(4096, 53)
    assert [asked[:4] for asked in maps] == [
        (4096, (64, 6, rows), (1, 128, 768), (64, 3, 42)) for rows in (52, 53)
    ]


def test_a_single_query_may_have_any_stride(maps: list[tuple[Any, ...]]) -> None:
    one = np.lib.stride_tricks.as_strided(np.zeros(128, np.float16), (1, 2, 64), (6, 128, 2))
    QueryMaps(view(one, "q"), group=2, tokens=64, dtype="float16").at(4096, 1)
    assert maps[0][2] == (1, 64, 64)


def nhd(pages: int, page_size: int, heads: int, head_dim: int) -> np.ndarray:
    return np.zeros((pages, page_size, heads, head_dim), np.float16)


def hnd(pages: int, page_size: int, heads: int, head_dim: int) -> np.ndarray:
    return np.zeros((pages, heads, page_size, head_dim), np.float16).transpose(0, 2, 1, 3)


def every_other_head(pages: int, page_size: int, heads: int, head_dim: int) -> np.ndarray:
    return nhd(pages, page_size, 2 * heads, head_dim)[:, :, ::2]


LAYOUTS = [nhd, hnd, every_other_head]
#: Whole groups of 8 tokens; powers of two and others.
PAGE_SIZES = (8, 16, 24, 32, 64, 80, 128, 256)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("head_dim", "part"), [(64, 0), (128, 0), (192, 2), (256, 0), (256, 1)])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_copy_brings_the_columns_of_a_slot_by_groups_of_8_tokens(
    maps: list[tuple[Any, ...]], page_size: int, head_dim: int, part: int, layout: Any
) -> None:
    """Of a decode tile; a slot of the ring has at most 128 columns."""
    cache = layout(3, page_size, 2, head_dim)
    blocks = mapped(cache, kv_tile=64, page_size=page_size).head_blocks
    rows, slot_blocks = gcd(page_size, DECODE_KEYS), gcd(head_dim, 128) // 64
    page, head, token = 2, 1, page_size - rows
    first_block = part * slot_blocks
    got = offsets_of(maps[1], 0, 0, head * blocks + first_block, token // 8, page)[0]
    group, block, row, column = np.indices((rows // 8, slot_blocks, 8, 64))
    step_page, step_token, step_head, _ = (step // 2 for step in cache.strides)
    expected = (
        page * step_page
        + (token + 8 * group + row) * step_token
        + head * step_head
        + 64 * (first_block + block)
        + column
    )
    np.testing.assert_array_equal(got, expected)
    assert maps[0][3][:3] == (64, 8, head_dim // 64)  # of prefill: all columns


@pytest.mark.parametrize("page_size", [None, 16])
def test_pieces_of_values_are_as_wide_as_values(
    maps: list[tuple[Any, ...]], page_size: int | None
) -> None:
    """Keys and values side by side, in heads of 192 and 128 columns; decode takes 64 at once."""
    one = nhd(3, page_size or 256, 2, 320)
    config = hopper_variant("pod", "float16", 192, page_size=page_size, v_head_dim=128)
    for name, cache in (("k_cache", one[..., :192]), ("v_cache", one[..., 192:])):
        before, width = len(maps), cache.shape[3]
        assert cache_maps(view(cache, name), config).head_blocks == 5
        prefill, decode = maps[before:]
        assert (prefill[3][2], decode[3][2]) == (width // 64, 1)  # blocks of 64 columns
        assert prefill[1][2] == decode[1][2] == 5 + width // 64


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [80, 96, 112])
@pytest.mark.parametrize("page_size", [None, 16, 256])
def test_blocks_come_one_by_one_where_the_last_is_not_a_whole_one(
    maps: list[tuple[Any, ...]], page_size: int | None, head_dim: int, layout: Any
) -> None:
    """Zeros behind the head, whatever lies there."""
    cache = layout(3, page_size or 100, 2, head_dim)
    assert mapped(cache, kv_tile=64, page_size=page_size).head_blocks == 1
    rows = min(page_size or DECODE_KEYS, DECODE_KEYS)
    page, head, token = 2, 1, (page_size or 100) - rows
    step_page, step_token, step_head, _ = (step // 2 for step in cache.strides)
    row, column = np.indices((rows, 64))
    for block in (0, 1):
        got = offsets_of(maps[1], 64 * block, token, head, page)[0, 0]
        expected = (
            page * step_page + (token + row) * step_token + head * step_head + 64 * block + column
        )
        np.testing.assert_array_equal(got, np.where(64 * block + column < head_dim, expected, -1))


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("page_size", [None, 8, 16, 24, 256])
def test_a_slot_of_heads_in_pairs_has_a_third_of_both(
    maps: list[tuple[Any, ...]], page_size: int | None, heads: int
) -> None:
    """Heads 2i and 2i + 1 begin at block 3i; prefill still takes them one by one."""
    cache = (
        nhd(3, page_size or 100, heads, 96)[:, ::2]
        if page_size is None
        else nhd(3, page_size, heads, 96)
    )
    config = hopper_variant("pod", "float16", 96, page_size=page_size, head_pairs=True)
    assert cache_maps(view(cache, "k_cache"), config).head_blocks == 1
    rows = config.piece_rows(DECODE_KEYS)
    page, token, pair = 2, cache.shape[1] - rows if page_size else 0, heads // 2 - 1
    step_page, step_token, step_head, _ = (step // 2 for step in cache.strides)
    for part in range(3):
        start = (0, token) if page_size is None else (0, 0)
        inner = () if page_size is None else (token // 8,)
        got = offsets_of(maps[1], *start, 3 * pair + part, *inner, page)
        row, column = np.indices((rows, 64))
        expected = page * step_page + (token + row) * step_token + 2 * pair * step_head
        expected = expected + 64 * part + column
        if page_size is None:
            expected = np.where(token + row < cache.shape[1], expected, -1)
        np.testing.assert_array_equal(got.reshape(rows, 64), expected)
    assert maps[0][1:4] == (
        (96, cache.shape[1], heads, 3),
        (1, step_token, 96, step_page),
        (64, config.piece_rows(config.kv_tile), 1, 1),
    )


@pytest.mark.parametrize("layout", [hnd, every_other_head])
def test_heads_that_do_not_lie_in_pairs_are_refused(layout: Any) -> None:
    config = hopper_variant("pod", "float16", 96, page_size=16, head_pairs=True)
    message = r"k_cache: got strides .* an even number of KV heads side by side"
    for cache in (layout(3, 16, 2, 96), nhd(3, 16, 3, 96)):
        with pytest.raises(ValueError, match=message):
            cache_maps(view(cache, "k_cache"), config)


def test_heads_of_other_widths_may_be_any_vectors_apart(maps: list[tuple[Any, ...]]) -> None:
    mapped(nhd(2, 16, 3, 104)[..., :96])
    assert maps[1][1:4] == ((96, 16, 3, 2), (1, 312, 104, 4992), (64, 16, 1, 1))


@pytest.mark.parametrize("kv_tile", KV_TILES)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_pieces_fill_tiles_and_stay_inside_a_page(
    maps: list[tuple[Any, ...]], page_size: int, kv_tile: int
) -> None:
    mapped(nhd(2, page_size, 1, 64), kv_tile, page_size)
    for tile, (*_, box, _) in zip((kv_tile, DECODE_KEYS), maps, strict=True):
        rows = box[1] * box[3]
        # Tiles may begin at any multiple of 64 keys, where a split begins.
        assert [tokens % rows for tokens in (page_size, tile, 64)] == [0, 0, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tile_of_a_contiguous_cache_is_one_copy(maps: list[tuple[Any, ...]], layout: Any) -> None:
    cache = layout(3, 100, 2, 128)
    blocks = mapped(cache, page_size=None).head_blocks
    request, head, token = 2, 1, 8
    got = offsets_of(maps[0], 0, token, head * blocks, request)[0]
    block, row, column = np.indices((2, 112, 64))
    step_request, step_token, step_head, _ = (step // 2 for step in cache.strides)
    expected = (
        request * step_request + (token + row) * step_token + head * step_head + 64 * block + column
    )
    np.testing.assert_array_equal(got, np.where(token + row < 100, expected, -1))


def test_strides_of_single_extents_are_made_valid(maps: list[tuple[Any, ...]]) -> None:
    one_page = np.lib.stride_tricks.as_strided(
        np.zeros((16, 2, 64), np.float16), (1, 16, 2, 64), (6, 256, 128, 2)
    )
    mapped(one_page)
    assert maps[0][2] == (1, 128, 64, 1024, 64)


def test_the_only_head_may_have_any_stride(maps: list[tuple[Any, ...]]) -> None:
    one_head = nhd(2, 16, 2, 72)[:, :, :1, :64]
    assert mapped(one_head).head_blocks == 0
    assert maps[0][1] == (64, 8, 1, 2, 2)


def test_nothing_is_mapped_of_an_empty_tensor(maps: list[tuple[Any, ...]]) -> None:
    for page_size in (16, None):
        empty = nhd(0, 16, 2, 64)
        assert mapped(empty, page_size=page_size) == (bytes(128), bytes(128), 0)
    q = view(np.zeros((0, 2, 64), np.float16), "q")
    assert QueryMaps(q, group=2, tokens=64, dtype="float16").at(4096, 0) == bytes(128)
    assert maps == []


def test_tensors_that_run_backwards_are_refused() -> None:
    with pytest.raises(ValueError, match=r"k_cache: got strides \(-2048, .* none below 0"):
        mapped(nhd(6, 16, 2, 64)[::-1])


def test_heads_between_blocks_of_columns_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"k_cache: got strides .* a multiple of 64 from a KV head"
    ):
        mapped(nhd(6, 16, 2, 72)[:, :, :, :64])


def test_tensors_seen_before_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(hopper_maps, "tensor_map", lambda pointer, *_: made.append(pointer) or b"")
    hopper_maps._cache_maps.cache_clear()
    cache = nhd(2, 16, 1, 64)
    first = mapped(cache)
    assert mapped(cache) == first
    assert len(made) == 2
    mapped(cache[1:])
    assert len(made) == 4
    hopper_maps._cache_maps.cache_clear()  # those are no maps
