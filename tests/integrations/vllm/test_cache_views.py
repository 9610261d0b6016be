"""Keys and values as views of vLLM's cache are read by the Hopper family, in every layout it has.

vLLM is not needed: the layouts are those of ``KVCacheLayout``, layers L, blocks B, heads H, tokens
N and content C = 2 D, in the order of memory.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from fake_gpu import H100, TorchTensor, install

import podrt

LAYERS, BLOCKS, HEAD_DIM, REQUESTS = 32, 100, 128, 3
LAYOUTS = ("LBNHC", "LBHNC", "BLNHC", "BLHNC", "BHLNC")


def views_of(layout: str, heads: int, page_size: int) -> tuple[Any, Any]:
    """Return keys and values, [B, N, H, D], of a layer in the middle."""
    extents = {"L": LAYERS, "B": BLOCKS, "H": heads, "N": page_size, "C": 2 * HEAD_DIM}
    strides = {
        axis: math.prod(extents[inner] for inner in layout[position + 1 :])
        for position, axis in enumerate(layout)
    }
    pointer = (1 << 40) + 2 * 7 * strides["L"]
    shape = (BLOCKS, page_size, heads, HEAD_DIM)
    steps = (strides["B"], strides["N"], strides["H"], 1)
    return tuple(
        TorchTensor(shape, pointer + 2 * offset, "torch.bfloat16", 0, steps)
        for offset in (0, HEAD_DIM)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("page_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_is_left_to_the_portable_family(
    monkeypatch: pytest.MonkeyPatch, layout: str, page_size: int, heads: int
) -> None:
    gpu = install(monkeypatch, H100)
    attention = podrt.HybridAttention(4 * heads, heads, HEAD_DIM, page_size=page_size)
    attention.reserve(8, 256, 1024, stream=7)
    table = TorchTensor((REQUESTS, 1024 // page_size), 1 << 38, "torch.int32")
    attention.plan([0, 1, 41, 42], [500, 90, 33], block_table=table, stream=7)
    # Queries are a part of the projection of all three, with padding at the end.
    projected = (4 * heads + 2 * heads) * HEAD_DIM
    shape, dtype = (64, 4 * heads, HEAD_DIM), "torch.bfloat16"
    q = TorchTensor(shape, 1 << 42, dtype, 0, (projected, HEAD_DIM, 1))
    attention.run(
        q, *views_of(layout, heads, page_size), out=TorchTensor(shape, 1 << 43, dtype), stream=7
    )
    gpu.finish()
    assert [launch.variant.family for launch in gpu.launches] == ["hopper"]
