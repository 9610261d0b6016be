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
    query_map_shape,
)
from podrt.kernels.hopper.tiles import tile_tokens
from podrt.kernels.tensor_map import MapShape
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors

#: Tensor maps, q, out, lse and sinks.
_CHANGING = 9
#: Addresses whose maps are kept.
_MOST_KNOWN = 4096


class HopperArguments:
    """Arguments in which a launch changes addresses, and the tensor maps that go with them.

    Raises
    ------
    ValueError
        No tensor map can describe how a tensor lies.
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

    def point_to(
        self, q: int, k_cache: int, v_cache: int, out: int, lse: int, sinks: int, rows: int
    ) -> int:
        """Take the addresses of a run whose q has `rows` rows; return what the driver takes."""
        maps = self._maps.get((q, rows, k_cache, v_cache))
        if maps is None:
            maps = self._map(q, rows, k_cache, v_cache)
        block = self._block
        block.change(block.view, 0, maps, q, out, lse, sinks)
        return block.address

    def _map(self, q: int, rows: int, k_cache: int, v_cache: int) -> bytes:
        if len(self._maps) >= _MOST_KNOWN:
            self._maps.clear()
        caches = self._kv_maps.get((k_cache, v_cache))
        if caches is None:
            if len(self._kv_maps) >= _MOST_KNOWN:
                self._kv_maps.clear()
            keys = cache_maps(replace(self._k, pointer=k_cache), self._config)
            values = cache_maps(replace(self._v, pointer=v_cache), self._config)
            caches = keys.prefill + values.prefill + keys.decode + values.decode
            self._kv_maps[k_cache, v_cache] = caches
        maps = self._maps[q, rows, k_cache, v_cache] = self._q_maps.at(q, rows) + caches
        return maps

    def __bytes__(self) -> bytes:
        return bytes(self._block)


def fixed_arguments(
    config: HopperConfig, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
) -> dict[str, Any]:
    """Return the arguments that no launch changes."""
    keys, values = (cache_map_shapes(t, config)[2] for t in (tensors.k_cache, tensors.v_cache))
    return {
        **shared_arguments(spec, tensors, buffers),
        "tile_tokens": tile_tokens(spec.group),
        "k_head_blocks": keys,
        "v_head_blocks": values,
    }


def map_shapes(
    config: HopperConfig, spec: AttentionSpec, tensors: RunTensors
) -> dict[str, tuple[str, MapShape]]:
    """Return the tensor and the shape of each map among the arguments, by its name there."""
    q = query_map_shape(tensors.q, spec.group, tile_tokens(spec.group))
    found = {"q_map": ("q", q)}
    for letter, cache in (("k", tensors.k_cache), ("v", tensors.v_cache)):
        prefill, decode, _ = cache_map_shapes(cache, config)
        found[f"prefill_{letter}_map"] = f"{letter}_cache", prefill
        found[f"decode_{letter}_map"] = f"{letter}_cache", decode
    return found
