"""Host side of the portable family: what its kernels are given, and their source."""

from __future__ import annotations

from typing import Any

import numpy as np

from podrt.jit import KernelSource, render
from podrt.kernels.config import NUM_TICKETS, KernelConfig
from podrt.kernels.structs import Field, render_struct, struct_dtype
from podrt.plan.work import WORK_ITEM_FIELDS

#: Arguments of every kernel of the family, in memory order. Strides are in elements.
#: They fit 32 bits (checked where tensors enter), which saves registers in the inner loops.
PARAMS = (
    Field("const u16*", "q", "[tokens, num_qo_heads, head_dim]"),
    Field("const u16*", "k", "keys: pages or rows, tokens, KV heads, head_dim"),
    Field("const u16*", "v", "values, as k"),
    Field("u16*", "out", "[tokens, num_qo_heads, head_dim]"),
    Field("float*", "lse", "[tokens, num_qo_heads] natural log, or null"),
    Field("const int*", "page_table", "page numbers; unused for a contiguous cache"),
    Field("const WorkItem*", "items", "prefill items, then decode items"),
    Field("float*", "partial_o", "[partial_rows * num_kv_heads, head_dim]"),
    Field("float*", "partial_lse", "[partial_rows * num_kv_heads], base 2"),
    Field("u32*", "counters", "tickets, taken by role, finished; zero between launches"),
    Field("u32*", "merge_counters", "[merges * num_kv_heads]; zero between launches"),
    Field("int", "q_stride_token", ""),
    Field("int", "q_stride_head", ""),
    Field("int", "k_stride_page", "of a page, or of a request's row"),
    Field("int", "k_stride_token", ""),
    Field("int", "k_stride_head", ""),
    Field("int", "v_stride_page", ""),
    Field("int", "v_stride_token", ""),
    Field("int", "v_stride_head", ""),
    Field("int", "out_stride_token", ""),
    Field("int", "out_stride_head", ""),
    Field("int", "lse_stride_token", ""),
    Field("int", "lse_stride_head", ""),
    Field("int", "num_prefill_items", ""),
    Field("int", "num_decode_items", ""),
    Field("int", "num_kv_heads", ""),
    Field("int", "group", "query heads per KV head"),
    Field("float", "scale_log2", "sm_scale * log2(e)"),
)
PARAMS_DTYPE = struct_dtype(PARAMS)

#: 32-bit words of the counter block: tickets, taken by role, finished.
NUM_COUNTERS = NUM_TICKETS + 3

_WORK_ITEM = tuple(Field("int", name, doc) for name, doc in WORK_ITEM_FIELDS)


def source_of(config: KernelConfig) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    text = render(
        f"{config.family}/kernel.cu.jinja",
        {
            "config": config,
            "num_tickets": NUM_TICKETS,
            "params_struct": render_struct("Params", PARAMS),
            "work_item_struct": render_struct("WorkItem", _WORK_ITEM, align=16),
        },
    )
    return KernelSource(name=config.name, arch=config.arch, text=text, entry=config.name)


def num_ctas(
    config: KernelConfig, num_prefill_units: int, num_decode_units: int, num_sms: int
) -> int:
    """Return the grid of a launch: one CTA per piece of work, or as many as fit on the GPU."""
    prefill = num_prefill_units if config.has_prefill else 0
    decode = -(-num_decode_units // config.warps) if config.has_decode else 0
    work = prefill + decode
    return min(work, config.ctas_per_sm * num_sms) if config.persistent else work


def new_params(**values: Any) -> np.ndarray[Any, Any]:
    """Return a launch's argument block; every member of `PARAMS` must be given."""
    params = np.zeros(1, PARAMS_DTYPE)
    missing = set(PARAMS_DTYPE.names or ()) - values.keys()
    if missing:
        raise TypeError(f"new_params: missing {', '.join(sorted(missing))}")
    for name, value in values.items():
        params[name] = value
    return params
