"""Tensor maps of the Hopper kernels: query tiles, and the pieces of K and V tiles.

A piece is what one TMA load brings (`HopperConfig.piece_rows`). ``hopper/kv_copy.cuh`` has the
other half.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.shared_memory import BLOCK_COLUMNS, DECODE_KEYS
from podrt.kernels.tensor_map import TENSOR_MAP_BYTES, MapShape, TensorMapEncoder, tensor_map
from podrt.spec.types import DType
from podrt.tensors.view import TensorView

_COLUMNS = BLOCK_COLUMNS
#: Rows of a swizzle atom.
_GROUP = 8
#: What strides of a map are multiples of, in elements.
_STRIDE_STEP = 8
#: Addresses whose maps are kept.
_MOST_KNOWN = 4096
_CACHE_AXES = 4


class CacheMaps(NamedTuple):
    """What the kernels are given of one cache, keys or values.

    Attributes
    ----------
    prefill, decode : bytes
        Maps whose boxes are the pieces of a tile of prefill, and of decode.
    head_blocks : int
        Blocks of 64 columns from a KV head to the next; 1 where heads are an axis of the maps.
    """

    prefill: bytes
    decode: bytes
    head_blocks: int


class QueryMaps:
    """Maps of queries [tokens, num_qo_heads, head_dim] for tiles of `group` heads of some tokens.

    Parameters
    ----------
    q : TensorView
        How queries lie; their address and number is that of `at`.
    group, tokens : int
        Query heads of a KV head, and tokens of a tile.
    dtype : {"bfloat16", "float16"}
        Element type.
    """

    def __init__(self, q: TensorView, *, group: int, tokens: int, dtype: DType) -> None:
        self._encoder = TensorMapEncoder(*query_map_shape(q, group, tokens), dtype)
        self._known: dict[tuple[int, int], bytes] = {}

    def at(self, pointer: int, rows: int) -> bytes:
        """Return the map of queries at an address."""
        known = self._known.get((pointer, rows))
        if known is None:
            if rows == 0:  # nothing will be read, and the driver maps no empty tensor
                return bytes(TENSOR_MAP_BYTES)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[pointer, rows] = self._encoder.encode(pointer, rows)
        return known


def query_map_shape(q: TensorView, group: int, tokens: int) -> MapShape:
    """Return what `QueryMaps` encodes, with as many rows as `q` has; ValueError as `cache_maps`."""
    require_mappable(q)
    _, heads, head_dim = q.shape
    token, head, _ = q.strides
    if token % _STRIDE_STEP or token <= 0:  # of a single row, which is never stepped over
        token = head_dim
    head = head if heads > 1 else head_dim
    shape, box = (head_dim, heads, max(q.shape[0], 1)), (_COLUMNS, group, tokens)
    return MapShape(shape, (1, head, token), box)


def cache_maps(cache: TensorView, config: HopperConfig) -> CacheMaps:
    """Map a cache [pages, page_size, num_kv_heads, head_dim].

    A contiguous cache's pages are requests.

    Raises
    ------
    ValueError
        No map can describe the strides.
    """
    paged, head_pairs = config.page_size is not None, config.head_pairs
    return _cache_maps(_Layout.of(cache), _pieces(cache, config), paged, head_pairs, config.dtype)


def cache_map_shapes(cache: TensorView, config: HopperConfig) -> tuple[MapShape, MapShape, int]:
    """Return what `cache_maps` encodes for prefill and decode, and `CacheMaps.head_blocks`."""
    require_mappable(cache)
    paged = config.page_size is not None
    return _cache_map_shapes(_Layout.of(cache), _pieces(cache, config), paged, config.head_pairs)


def _pieces(cache: TensorView, config: HopperConfig) -> tuple[tuple[int, int], ...]:
    """Return tokens and columns of a piece of prefill's tiles of a cache, and of decode's."""
    return (
        (config.piece_rows(config.kv_tile), cache.shape[3]),
        (config.piece_rows(DECODE_KEYS), config.decode_columns),
    )


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
def _cache_maps(
    cache: _Layout,
    pieces: tuple[tuple[int, int], ...],
    paged: bool,
    head_pairs: bool,
    dtype: DType,
) -> CacheMaps:
    require_mappable(cache)
    if 0 in cache.shape:
        return CacheMaps(bytes(TENSOR_MAP_BYTES), bytes(TENSOR_MAP_BYTES), 0)
    *shapes, head_blocks = _cache_map_shapes(cache, pieces, paged, head_pairs)
    prefill, decode = (tensor_map(cache.pointer, *each, dtype) for each in shapes)
    return CacheMaps(prefill, decode, head_blocks)


def _cache_map_shapes(
    cache: _Layout, pieces: tuple[tuple[int, int], ...], paged: bool, head_pairs: bool
) -> tuple[MapShape, MapShape, int]:
    of_decode = _in_pairs(cache) if head_pairs else cache
    prefill, decode = (
        _cache_map_shape(each, *piece, paged)
        for each, piece in zip((cache, of_decode), pieces, strict=True)
    )
    return prefill, decode, _head_blocks(cache)


def _cache_map_shape(cache: _Layout, rows: int, columns: int, paged: bool) -> MapShape:
    if cache.shape[3] % _COLUMNS:
        return _by_heads_shape(cache, rows)
    shape_of = _paged_shape if paged else _contiguous_shape
    return shape_of(cache, _head_blocks(cache), rows, columns // _COLUMNS)


def _in_pairs(cache: _Layout) -> _Layout:
    """Return the cache with two neighbouring heads as one, which has whole blocks of columns."""
    if not lies_in_pairs(cache):
        raise ValueError(
            f"{cache.name}: got strides {cache.strides} (in elements) of {cache.shape}, expected "
            "an even number of KV heads side by side"
        )
    pages, page_size, heads, head_dim = cache.shape
    page, token, _, _ = cache.strides
    columns = 2 * head_dim
    shape, strides = (pages, page_size, heads // 2, columns), (page, token, columns, 1)
    return cache._replace(shape=shape, strides=strides)


def _paged_shape(cache: _Layout, head_blocks: int, rows: int, piece_blocks: int) -> MapShape:
    pages, page_size, heads, head_dim = cache.shape
    page, token, _, _ = _valid_strides(cache)
    blocks = head_dim // _COLUMNS
    all_blocks = (heads - 1) * head_blocks + blocks
    shape = (_COLUMNS, _GROUP, all_blocks, page_size // _GROUP, pages)
    strides = (1, token, _COLUMNS, _GROUP * token, page)
    return MapShape(shape, strides, (_COLUMNS, _GROUP, piece_blocks, rows // _GROUP, 1))


def _contiguous_shape(cache: _Layout, head_blocks: int, rows: int, piece_blocks: int) -> MapShape:
    requests, length, heads, head_dim = cache.shape
    request, token, _, _ = _valid_strides(cache)
    blocks = head_dim // _COLUMNS
    shape = (_COLUMNS, length, (heads - 1) * head_blocks + blocks, requests)
    strides = (1, token, _COLUMNS, request)
    return MapShape(shape, strides, (_COLUMNS, rows, piece_blocks, 1))


def _by_heads_shape(cache: _Layout, rows: int) -> MapShape:
    """Return the shape for one block of a piece, where a head's last block is not a whole one.

    The copy engine fills it up with zeros: the innermost axis ends where the head does.
    """
    pages, page_size, heads, head_dim = cache.shape
    page, token, head, _ = _valid_strides(cache)
    return MapShape(
        (head_dim, page_size, heads, pages), (1, token, head, page), (_COLUMNS, rows, 1, 1)
    )


def _head_blocks(cache: _Layout) -> int:
    if cache.shape[3] % _COLUMNS:
        return 1
    return 0 if cache.shape[2] == 1 else cache.strides[2] // _COLUMNS


def lies_in_pairs(cache: TensorView | _Layout) -> bool:
    """Tell whether KV heads lie side by side and none is left without a neighbour."""
    _, _, heads, head_dim = cache.shape
    return heads % 2 == 0 and cache.strides[2] == head_dim


def why_unmappable(tensor: TensorView | _Layout) -> str | None:
    """Say why no map can describe a tensor's strides; None if one can. Caches have four axes."""
    shape, strides = tensor.shape, tensor.strides
    got = f"{tensor.name}: got strides {strides} (in elements), expected "
    if 0 in shape:
        return None
    least = 0 if len(shape) == _CACHE_AXES else 1
    if any(stride < least for extent, stride in zip(shape, strides, strict=True) if extent > 1):
        return got + f"none below {least}"
    by_blocks = len(shape) == _CACHE_AXES and shape[3] % _COLUMNS == 0
    if by_blocks and shape[2] > 1 and strides[2] % _COLUMNS:
        return got + f"a multiple of {_COLUMNS} from a KV head to the next"
    return None


def require_mappable(tensor: TensorView | _Layout) -> None:
    """Raise ValueError if no map can describe a tensor's strides."""
    obstacle = why_unmappable(tensor)
    if obstacle:
        raise ValueError(f'{obstacle}; pass another tensor, or use policy="portable"')


def _valid_strides(tensor: _Layout) -> tuple[int, ...]:
    """Return strides that the driver takes even along axes that are never stepped over."""
    return tuple(
        stride if extent > 1 else tensor.shape[-1]
        for extent, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
