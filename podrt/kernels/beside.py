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
    sources: dict[KernelSource, None] = {}
    for variant in variants:
        arch, page_size = variant.arch, variant.page_size
        if page_size is None:
            continue
        write = CacheWriteConfig(arch, variant.head_dim, page_size, variant.v_head_dim)
        sources[cache_write.source_of(write)] = None
        sources[joins.source_of(JoinConfig(arch, variant.value_dim, variant.dtype))] = None
        sources[growth.source_of(GrowthConfig(arch))] = None
    return list(sources)
