"""Host side of the Hopper family: what its kernels are given, and their source."""

from __future__ import annotations

from podrt.jit import KernelSource
from podrt.kernels.arguments import (
    BUFFERS,
    HEADS,
    OUTPUT_STRIDES,
    PLAN_STRUCTS,
    SCORES,
)
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.rows import CACHE_ROWS
from podrt.kernels.hopper.shared_memory import render_layout
from podrt.kernels.structs import Field, render_struct, struct_dtype
from podrt.kernels.variant import NUM_TICKETS
from podrt.plan import Plan
from podrt.spec.mask import MOST_TREE_TOKENS

#: Arguments of every kernel of the family, in memory order. Strides are in elements. Where rows are
#: gathered, `CACHE_ROWS` lie in the place of the maps of a cache.
PARAMS = (
    Field("TensorMap", "q_map", "boxes of 64 columns x group heads x tile_tokens tokens"),
    Field("TensorMap", "prefill_k_map", "pieces of a tile of kv_tile tokens: hopper/kv_copy.cuh"),
    Field("TensorMap", "prefill_v_map", ""),
    Field("TensorMap", "decode_k_map", "the same of a tile of 64 tokens"),
    Field("TensorMap", "decode_v_map", ""),
    Field("const u16*", "q", "[tokens, num_qo_heads, head_dim]"),
    *BUFFERS,
    Field("int", "q_stride_token", ""),
    Field("int", "q_stride_head", ""),
    *OUTPUT_STRIDES,
    *HEADS,
    Field("int", "tile_tokens", "tokens of a prefill tile: 128 / group, rounded down"),
    Field("int", "k_head_blocks", "blocks of 64 columns (gathered: 8) from a KV head to the next"),
    Field("int", "v_head_blocks", ""),
    *SCORES,
)
_ALIGN = 64
PARAMS_DTYPE = struct_dtype(PARAMS, align=_ALIGN)


def source_of(config: HopperConfig) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    return KernelSource.rendered(
        f"{config.family}/kernel.cu.jinja",
        config,
        cache_rows_struct=render_struct("CacheRows", CACHE_ROWS),
        layout_struct=render_layout(config),
        most_tree_tokens=MOST_TREE_TOKENS,
        num_tickets=NUM_TICKETS,
        params_struct=render_struct("Params", PARAMS, align=_ALIGN),
        plan_structs=PLAN_STRUCTS,
    )


def num_ctas(config: HopperConfig, plan: Plan, num_sms: int) -> int:
    """Return the grid of a launch: a CTA per SM, or fewer when there is not that much work."""
    prefill = plan.num_prefill_units if config.has_prefill else 0
    decode = plan.num_decode_units if config.has_decode else 0
    return min(prefill + decode, num_sms)
