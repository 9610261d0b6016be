"""The arguments of the Hopper kernels over tensors of one layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from podrt.kernels.argument_block import ArgumentBlock
from podrt.kernels.arguments import Buffers, shared_arguments
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.host import PARAMS
from podrt.kernels.hopper.maps import (
    QueryMaps,
    cache_map_shapes,
    cache_maps,
    lies_in_pairs,
    query_map_shape,
    why_unmappable,
)
from podrt.kernels.hopper.rows import (
    RowSteps,
    cache_rows,
    head_chunks,
    require_gatherable,
    row_steps,
    why_ungatherable,
)
from podrt.kernels.hopper.tiles import tile_tokens
from podrt.kernels.tensor_map import MapShape
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors
from podrt.tensors.view import TensorView

#: Tensor maps, q, out, lse and sinks.
_CHANGING = 9
#: Addresses whose maps are kept.
_MOST_KNOWN = 4096


class HopperArguments:
    """Arguments in which a launch changes addresses, and the tensor maps that go with them.

    Raises
    ------
    ValueError
        The kernel cannot copy from tensors that lie like that (`why_unreadable`).
    """

    def __init__(
        self, config: HopperConfig, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
    ) -> None:
        described = tensors.described()
        self._config, self._k, self._v = config, described.k_cache, described.v_cache
        tokens = tile_tokens(spec.group)
        self._q_maps = QueryMaps(described.q, group=spec.group, tokens=tokens, dtype=config.dtype)
        self._kv_maps: dict[tuple[int, int], bytes] = {}
        self._maps: dict[tuple[int, int, int, int], bytes] = {}  # all five, one after the other
        fixed = fixed_arguments(config, spec, tensors, buffers)
        self._block = ArgumentBlock(PARAMS, _CHANGING, **fixed)
        self._change, self._address = self._block.change, self._block.address

    def point_to(
        self, q: int, k_cache: int, v_cache: int, out: int, lse: int, sinks: int, rows: int
    ) -> int:
        """Take the addresses of a run whose q has `rows` rows; return what the driver takes."""
        maps = self._maps.get((q, rows, k_cache, v_cache))
        if maps is None:
            maps = self._map(q, rows, k_cache, v_cache)
        self._change(maps, q, out, lse, sinks)
        return self._address

    def _map(self, q: int, rows: int, k_cache: int, v_cache: int) -> bytes:
        if len(self._maps) >= _MOST_KNOWN:
            self._maps.clear()
        caches = self._kv_maps.get((k_cache, v_cache))
        if caches is None:
            if len(self._kv_maps) >= _MOST_KNOWN:
                self._kv_maps.clear()
            keys = _described(replace(self._k, pointer=k_cache), self._config)
            values = _described(replace(self._v, pointer=v_cache), self._config)
            caches = keys[0] + values[0] + keys[1] + values[1]
            self._kv_maps[k_cache, v_cache] = caches
        maps = self._maps[q, rows, k_cache, v_cache] = self._q_maps.at(q, rows) + caches
        return maps

    def __bytes__(self) -> bytes:
        return bytes(self._block)


def fixed_arguments(
    config: HopperConfig, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
) -> dict[str, Any]:
    """Return the arguments that no launch changes."""
    keys, values = (_head_blocks(t, config) for t in (tensors.k_cache, tensors.v_cache))
    return {
        **shared_arguments(spec, tensors, buffers),
        "tile_tokens": tile_tokens(spec.group),
        "k_head_blocks": keys,
        "v_head_blocks": values,
    }


def map_shapes(
    config: HopperConfig, spec: AttentionSpec, tensors: RunTensors
) -> dict[str, tuple[str, MapShape | RowSteps]]:
    """Return the tensor and the shape of each map among the arguments, by its name there.

    Where rows are gathered, that of a cache is how they lie.
    """
    q = query_map_shape(tensors.q, spec.group, tile_tokens(spec.group))
    found: dict[str, tuple[str, MapShape | RowSteps]] = {"q_map": ("q", q)}
    for letter, cache in (("k", tensors.k_cache), ("v", tensors.v_cache)):
        prefill: MapShape | RowSteps
        decode: MapShape | RowSteps
        if config.gathers_rows:
            prefill = decode = row_steps(cache, config.dtype)
        else:
            prefill, decode, _ = cache_map_shapes(cache, config)
        found[f"prefill_{letter}_map"] = f"{letter}_cache", prefill
        found[f"decode_{letter}_map"] = f"{letter}_cache", decode
    return found


def why_unreadable(config: HopperConfig, tensors: RunTensors) -> str | None:
    """Say why a kernel cannot copy from tensors that lie like that; None if it can."""
    caches = (tensors.k_cache, tensors.v_cache)
    reasons = [why_unmappable(tensors.q)]
    if config.gathers_rows:
        reasons += [why_ungatherable(cache, config.dtype) for cache in caches]
    else:
        reasons += map(why_unmappable, caches)
    return next(filter(None, reasons), None)


def lie_in_pairs(tensors: RunTensors) -> bool:
    """Tell whether a kernel for heads in pairs can copy from caches that lie like that."""
    return all(map(lies_in_pairs, (tensors.k_cache, tensors.v_cache)))


def _described(cache: TensorView, config: HopperConfig) -> tuple[bytes, bytes]:
    """Return what prefill and decode are given of a cache: a map each, or its rows."""
    if config.gathers_rows:
        rows = cache_rows(cache.pointer, row_steps(cache, config.dtype))
        return rows, rows
    maps = cache_maps(cache, config)
    return maps.prefill, maps.decode


def _head_blocks(cache: TensorView, config: HopperConfig) -> int:
    if not config.gathers_rows:
        return cache_map_shapes(cache, config)[2]
    require_gatherable(cache, config.dtype)
    return head_chunks(cache)
