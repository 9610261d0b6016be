"""Host side of the Hopper family: what its kernels are given, and their source."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from podrt.jit import KernelSource, render
from podrt.kernels.arguments import (
    BUFFERS,
    COUNTS,
    OUTPUT_STRIDES,
    WORK_ITEM_STRUCT,
    buffer_arguments,
)
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.maps import cache_maps, query_map
from podrt.kernels.hopper.tiles import tile_tokens
from podrt.kernels.structs import Field, fill_struct, render_struct, struct_dtype
from podrt.kernels.variant import NUM_TICKETS
from podrt.plan import Plan

if TYPE_CHECKING:
    from podrt.runtime.workspace import Workspace
    from podrt.tensors.run_tensors import RunTensors

#: Arguments of every kernel of the family, in memory order. Strides are in elements.
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
    *COUNTS,
    Field("int", "tile_tokens", "tokens of a prefill tile: 128 / group, rounded down"),
    Field("int", "decode_only_ctas", "first CTAs: no prefill before decode has run out"),
    Field("int", "prefill_only_ctas", "next CTAs: no decode before prefill has run out"),
    Field("int", "k_head_blocks", "blocks of 64 columns from a KV head to the next"),
    Field("int", "v_head_blocks", ""),
    Field("float", "scale_log2", "sm_scale * log2(e)"),
)
_ALIGN = 64
PARAMS_DTYPE = struct_dtype(PARAMS, align=_ALIGN)


def source_of(config: HopperConfig) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    text = render(
        f"{config.family}/kernel.cu.jinja",
        {
            "config": config,
            "num_tickets": NUM_TICKETS,
            "params_struct": render_struct("Params", PARAMS, align=_ALIGN),
            "work_item_struct": WORK_ITEM_STRUCT,
        },
    )
    return KernelSource(name=config.name, arch=config.arch, text=text, entry=config.name)


def num_ctas(config: HopperConfig, plan: Plan, num_sms: int) -> int:
    """Return the grid of a launch: a CTA per SM, or fewer when there is not that much work."""
    prefill = plan.num_prefill_units if config.has_prefill else 0
    decode = plan.num_decode_units if config.has_decode else 0
    return min(prefill + decode, num_sms)


def params_of(
    config: HopperConfig,
    plan: Plan,
    tensors: RunTensors,
    workspace: Workspace,
    page_table: int,
    sm_scale: float,
) -> npt.NDArray[np.void]:
    """Return the argument block of a launch."""
    q = tensors.q
    keys, values = (cache_maps(cache, config) for cache in (tensors.k_cache, tensors.v_cache))
    tokens = tile_tokens(plan.group)
    return fill_struct(
        PARAMS_DTYPE,
        q_map=query_map(q, group=plan.group, tokens=tokens, dtype=config.dtype),
        prefill_k_map=keys.prefill,
        prefill_v_map=values.prefill,
        decode_k_map=keys.decode,
        decode_v_map=values.decode,
        q=q.pointer,
        q_stride_token=q.strides[0],
        q_stride_head=q.strides[1],
        tile_tokens=tokens,
        decode_only_ctas=plan.decode_only_ctas,
        prefill_only_ctas=plan.prefill_only_ctas,
        k_head_blocks=keys.head_blocks,
        v_head_blocks=values.head_blocks,
        scale_log2=sm_scale * math.log2(math.e),
        **buffer_arguments(plan, tensors, workspace, page_table),
    )
