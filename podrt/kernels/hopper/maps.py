"""Tensor maps of the Hopper kernels: query tiles, and the pieces of K and V tiles.

A piece is what one bulk copy brings (`HopperConfig.piece_rows`). ``hopper/kv_copy.cuh`` has the
other half.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from podrt.kernels.hopper.config import DECODE_KEYS, HopperConfig
from podrt.kernels.tensor_map import TENSOR_MAP_BYTES, tensor_map
from podrt.spec.types import DType
from podrt.tensors.view import TensorView

#: Columns of a swizzled row, and rows of a swizzle atom.
_COLUMNS, _GROUP = 64, 8


class CacheMaps(NamedTuple):
    """What the kernels are given of one cache, keys or values.

    Attributes
    ----------
    prefill, decode : bytes
        Maps whose boxes are the pieces of a tile of prefill, and of decode.
    head_blocks : int
        Blocks of 64 columns from a KV head to the next.
    """

    prefill: bytes
    decode: bytes
    head_blocks: int


def query_map(q: TensorView, *, group: int, tokens: int, dtype: DType) -> bytes:
    """Map queries [tokens, num_qo_heads, head_dim] for tiles of `group` heads of some tokens."""
    return _query_map(_Layout.of(q), group, tokens, dtype)


def cache_maps(cache: TensorView, config: HopperConfig) -> CacheMaps:
    """Map a cache [pages, page_size, num_kv_heads, head_dim].

    A contiguous cache's pages are requests.

    Raises
    ------
    ValueError
        No map can describe the strides.
    """
    pieces = config.piece_rows(config.kv_tile), config.piece_rows(DECODE_KEYS)
    return _cache_maps(_Layout.of(cache), pieces, config.page_size is not None, config.dtype)


class _Layout(NamedTuple):
    """What a map depends on, to look it up by: launches follow each other on the same tensors."""

    name: str
    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: TensorView) -> _Layout:
        return cls(tensor.name, tensor.pointer, tensor.shape, tensor.strides)


@lru_cache(maxsize=4096)
def _query_map(q: _Layout, group: int, tokens: int, dtype: DType) -> bytes:
    _require_no_steps_back(q)
    if 0 in q.shape:  # nothing will be read, and the driver maps no empty tensor
        return bytes(TENSOR_MAP_BYTES)
    box = (_COLUMNS, group, tokens)
    return tensor_map(q.pointer, q.shape[::-1], _valid_strides(q)[::-1], box, dtype)


@lru_cache(maxsize=4096)
def _cache_maps(cache: _Layout, pieces: tuple[int, int], paged: bool, dtype: DType) -> CacheMaps:
    _require_no_steps_back(cache)
    if 0 in cache.shape:
        return CacheMaps(bytes(TENSOR_MAP_BYTES), bytes(TENSOR_MAP_BYTES), 0)
    head_blocks = _head_blocks(cache)
    map_of = _paged_map if paged else _contiguous_map
    prefill, decode = (map_of(cache, head_blocks, rows, dtype) for rows in pieces)
    return CacheMaps(prefill, decode, head_blocks)


def _paged_map(cache: _Layout, head_blocks: int, rows: int, dtype: DType) -> bytes:
    pages, page_size, heads, head_dim = cache.shape
    page, token, _, _ = _valid_strides(cache)
    blocks = head_dim // _COLUMNS
    all_blocks = (heads - 1) * head_blocks + blocks
    shape = (_COLUMNS, _GROUP, all_blocks, page_size // _GROUP, pages)
    strides = (1, token, _COLUMNS, _GROUP * token, page)
    box = (_COLUMNS, _GROUP, blocks, rows // _GROUP, 1)
    return tensor_map(cache.pointer, shape, strides, box, dtype)


def _contiguous_map(cache: _Layout, head_blocks: int, rows: int, dtype: DType) -> bytes:
    requests, length, heads, head_dim = cache.shape
    request, token, _, _ = _valid_strides(cache)
    blocks = head_dim // _COLUMNS
    shape = (_COLUMNS, length, (heads - 1) * head_blocks + blocks, requests)
    strides = (1, token, _COLUMNS, request)
    return tensor_map(cache.pointer, shape, strides, (_COLUMNS, rows, blocks, 1), dtype)


def _head_blocks(cache: _Layout) -> int:
    heads, stride = cache.shape[2], cache.strides[2]
    if heads == 1:
        return 0
    if stride % _COLUMNS:
        raise ValueError(
            f"{cache.name}: got strides {cache.strides} (in elements), expected a multiple of "
            f'{_COLUMNS} from a KV head to the next; pass another tensor, or use policy="portable"'
        )
    return stride // _COLUMNS


def _require_no_steps_back(tensor: _Layout) -> None:
    if 0 not in tensor.shape and any(stride < 0 for stride in tensor.strides):
        raise ValueError(
            f"{tensor.name}: got strides {tensor.strides} (in elements), expected none below 0; "
            'pass another tensor, or use policy="portable"'
        )


def _valid_strides(tensor: _Layout) -> tuple[int, ...]:
    """Return strides that the driver takes even along axes that are never stepped over."""
    return tuple(
        stride if extent > 1 else tensor.shape[-1]
        for extent, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
