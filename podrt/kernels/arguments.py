"""Arguments that the kernels of all families share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from podrt.kernels.structs import Field, render_struct
from podrt.plan import WORK_ITEM_FIELDS, Plan

if TYPE_CHECKING:
    from podrt.run_arguments import RunTensors
    from podrt.workspace import Workspace

WORK_ITEM_STRUCT = render_struct(
    "WorkItem", tuple(Field("int", name, doc) for name, doc in WORK_ITEM_FIELDS), align=16
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
