"""Host side of the portable family: what its kernels are given, and their source."""

from __future__ import annotations

from podrt.jit import KernelSource
from podrt.kernels.arguments import (
    BUFFERS,
    HEADS,
    OUTPUT_STRIDES,
    PLAN_STRUCTS,
    SCORES,
)
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.structs import Field, render_struct, struct_dtype
from podrt.kernels.variant import NUM_TICKETS
from podrt.spec.mask import MOST_TREE_TOKENS

#: Arguments of every kernel of the family, in memory order. Strides are in elements.
#: They fit 32 bits (checked where tensors enter), which saves registers in the inner loops.
PARAMS = (
    Field("const u16*", "q", "[tokens, num_qo_heads, head_dim]"),
    Field("const u16*", "k", "keys: pages or rows, tokens, KV heads, head_dim"),
    Field("const u16*", "v", "values, as k, of v_head_dim"),
    *BUFFERS,
    Field("int", "q_stride_token", ""),
    Field("int", "q_stride_head", ""),
    Field("int", "k_stride_page", "of a page, or of a request's row"),
    Field("int", "k_stride_token", ""),
    Field("int", "k_stride_head", ""),
    Field("int", "v_stride_page", ""),
    Field("int", "v_stride_token", ""),
    Field("int", "v_stride_head", ""),
    *OUTPUT_STRIDES,
    *HEADS,
    Field("int", "num_pages", "pages of the cache, or rows of a contiguous one"),
    *SCORES,
)
PARAMS_DTYPE = struct_dtype(PARAMS)

#: 32-bit words of the counter block: tickets, taken by role, finished.
NUM_COUNTERS = NUM_TICKETS + 3


def source_of(config: KernelConfig) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    return KernelSource.rendered(
        f"{config.family}/kernel.cu.jinja",
        config,
        most_tree_tokens=MOST_TREE_TOKENS,
        num_tickets=NUM_TICKETS,
        params_struct=render_struct("Params", PARAMS),
        plan_structs=PLAN_STRUCTS,
    )


def num_ctas(
    config: KernelConfig, num_prefill_units: int, num_decode_units: int, num_sms: int
) -> int:
    """Return the grid of a launch: one CTA per piece of work, or as many as fit on the GPU."""
    prefill = num_prefill_units if config.has_prefill else 0
    decode = -(-num_decode_units // config.warps) if config.has_decode else 0
    return min(prefill + decode, config.ctas_per_sm * num_sms)
