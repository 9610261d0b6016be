"""The kernels that a server of some layers needs beside those of attention."""

from __future__ import annotations

from collections.abc import Iterable

from podrt.jit import KernelSource
from podrt.kernels import cache_write, growth, joins
from podrt.kernels.cache_write import CacheWriteConfig
from podrt.kernels.families import Variant
from podrt.kernels.growth import GrowthConfig
from podrt.kernels.joins import JoinConfig


def sources_beside(variants: Iterable[Variant]) -> list[KernelSource]:
    """Return what writes to their pages, joins rows that share a prefix, and has plans grow.

    Nothing for contiguous caches: writes and prefixes are of pages, as plans are that grow.
    """
    writes: dict[CacheWriteConfig, None] = {}  # in order, each once
    joiners: dict[JoinConfig, None] = {}
    growers: dict[GrowthConfig, None] = {}
    for each in variants:
        if each.page_size is not None:
            write = CacheWriteConfig(each.arch, each.head_dim, each.page_size, each.v_head_dim)
            writes[write] = None
            joiners[JoinConfig(each.arch, each.value_dim, each.dtype)] = None
            growers[GrowthConfig(each.arch)] = None
    return [
        *map(cache_write.source_of, writes),
        *map(joins.source_of, joiners),
        *map(growth.source_of, growers),
    ]
