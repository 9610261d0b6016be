"""Tensor maps of the Hopper kernels: query tiles, and the pieces of K and V tiles.

A piece is what one bulk copy brings: the tokens that a tile and a page have in common, but no more
than 64, at multiples of which splits begin; of a contiguous cache it is the whole tile.
``hopper/kv_copy.cuh`` has the other half.
"""

from __future__ import annotations

import math

from podrt.kernels.config import DType
from podrt.kernels.hopper_config import DECODE_KEYS
from podrt.kernels.tensor_map import TENSOR_MAP_BYTES, tensor_map
from podrt.tensors import TensorView

#: Columns of a swizzled row, and rows of a swizzle atom.
_COLUMNS, _GROUP = 64, 8


def query_map(q: TensorView, *, group: int, tokens: int, dtype: DType) -> bytes:
    """Map queries [tokens, num_qo_heads, head_dim] for tiles of `group` heads of some tokens."""
    _require_no_steps_back(q)
    if 0 in q.shape:  # nothing will be read, and the driver maps no empty tensor
        return bytes(TENSOR_MAP_BYTES)
    strides = _valid_strides(q)
    box = (_COLUMNS, group, tokens)
    return tensor_map(q.pointer, q.shape[::-1], strides[::-1], box, dtype)


def cache_map(cache: TensorView, *, rows: int, paged: bool, dtype: DType) -> bytes:
    """Map a cache [pages, page_size, num_kv_heads, head_dim] for tiles of `rows` tokens.

    Parameters
    ----------
    cache : TensorView
        Keys or values; of a contiguous cache the pages are requests.
    rows : int
        Tokens of a tile.
    paged : bool
        Whether tiles lie in pages; else each is in the one page of its request.
    dtype : {"bfloat16", "float16"}
        Element type.

    Raises
    ------
    ValueError
        No map can describe the strides.
    """
    _require_no_steps_back(cache)
    if 0 in cache.shape:
        return bytes(TENSOR_MAP_BYTES)
    pages, page_size, _, head_dim = cache.shape
    page, token, _, _ = _valid_strides(cache)
    box_blocks = head_dim // _COLUMNS
    blocks = (cache.shape[2] - 1) * head_blocks(cache) + box_blocks
    if not paged:
        shape: tuple[int, ...] = (_COLUMNS, page_size, blocks, pages)
        box: tuple[int, ...] = (_COLUMNS, rows, box_blocks, 1)
        return tensor_map(cache.pointer, shape, (1, token, _COLUMNS, page), box, dtype)
    shape = (_COLUMNS, _GROUP, blocks, page_size // _GROUP, pages)
    box = (_COLUMNS, _GROUP, box_blocks, math.gcd(page_size, rows, DECODE_KEYS) // _GROUP, 1)
    strides = (1, token, _COLUMNS, _GROUP * token, page)
    return tensor_map(cache.pointer, shape, strides, box, dtype)


def head_blocks(cache: TensorView) -> int:
    """Return the blocks of 64 columns from a KV head to the next."""
    heads, stride = cache.shape[2], cache.strides[2]
    if heads == 1 or 0 in cache.shape:
        return 0
    if stride % _COLUMNS:
        raise ValueError(
            f"{cache.name}: got strides {cache.strides} (in elements), expected a multiple of "
            f'{_COLUMNS} from a KV head to the next; pass another tensor, or use policy="portable"'
        )
    return stride // _COLUMNS


def _require_no_steps_back(tensor: TensorView) -> None:
    if 0 not in tensor.shape and any(stride < 0 for stride in tensor.strides):
        raise ValueError(
            f"{tensor.name}: got strides {tensor.strides} (in elements), expected none below 0; "
            'pass another tensor, or use policy="portable"'
        )


def _valid_strides(tensor: TensorView) -> tuple[int, ...]:
    """Return strides that the driver takes even along axes that are never stepped over."""
    return tuple(
        stride if extent > 1 else tensor.shape[-1]
        for extent, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
