"""Arguments that the kernels of all families share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from podrt.kernels.structs import Field, render_struct
from podrt.plan import WORK_ITEM_FIELDS, Plan

if TYPE_CHECKING:
    from podrt.runtime.workspace import Workspace
    from podrt.tensors.run_tensors import RunTensors

WORK_ITEM_STRUCT = render_struct(
    "WorkItem", tuple(Field("int", name, doc) for name, doc in WORK_ITEM_FIELDS), align=16
)

#: Results, work list and buffers; `buffer_arguments` fills these and the next two groups.
BUFFERS = (
    Field("u16*", "out", "[tokens, num_qo_heads, head_dim]"),
    Field("float*", "lse", "[tokens, num_qo_heads] natural log, or null"),
    Field("const int*", "page_table", "page numbers; unused for a contiguous cache"),
    Field("const WorkItem*", "items", "prefill items, then decode items"),
    Field("float*", "partial_o", "[partial_rows * num_kv_heads, head_dim]"),
    Field("float*", "partial_lse", "[partial_rows * num_kv_heads], base 2"),
    Field("u32*", "counters", "tickets, taken by role, finished; zero between launches"),
    Field("u32*", "merge_counters", "[merges * num_kv_heads, 2]; zero between launches"),
)
OUTPUT_STRIDES = (
    Field("int", "out_stride_token", ""),
    Field("int", "out_stride_head", ""),
    Field("int", "lse_stride_token", ""),
    Field("int", "lse_stride_head", ""),
)
COUNTS = (
    Field("int", "num_prefill_items", ""),
    Field("int", "num_decode_items", ""),
    Field("int", "num_kv_heads", ""),
    Field("int", "group", "query heads per KV head"),
)


def buffer_arguments(
    plan: Plan, tensors: RunTensors, workspace: Workspace, page_table: int
) -> dict[str, Any]:
    """Return outputs, work list and buffers by the names that they have in every family."""
    out, lse = tensors.out, tensors.lse
    return {
        "out": out.pointer,
        "out_stride_token": out.strides[0],
        "out_stride_head": out.strides[1],
        "lse": lse.pointer if lse else 0,
        "lse_stride_token": lse.strides[0] if lse else 0,
        "lse_stride_head": lse.strides[1] if lse else 0,
        "page_table": page_table,
        "items": workspace.items.data.ptr,
        "partial_o": workspace.partial_o.data.ptr,
        "partial_lse": workspace.partial_lse.data.ptr,
        "counters": workspace.counters.data.ptr,
        "merge_counters": workspace.merge_counters.data.ptr,
        "num_prefill_items": len(plan.prefill),
        "num_decode_items": len(plan.decode),
        "num_kv_heads": plan.num_kv_heads,
        "group": plan.group,
    }
