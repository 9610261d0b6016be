"""What the kernels of all families are given: a plan on the device, and the arguments of a launch.

What `plan` knows of a batch lies in memory, as a header and the work items behind it, so that a
launch recorded in a CUDA graph serves any batch. Arguments hold only what `run` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from podrt.kernels.structs import Field, packer, render_struct, struct_dtype
from podrt.plan import WORK_ITEM_FIELDS, Plan

if TYPE_CHECKING:
    from podrt.runtime.workspace import Workspace
    from podrt.tensors.run_tensors import RunTensors

#: The header, in memory order; prefill items follow it, then decode items. All zeros are a plan
#: with nothing to do.
PLAN_HEADER = (
    Field("const int*", "page_table", "page numbers; unused for a contiguous cache"),
    Field("const int*", "kv_lens", "[requests] keys that are really there, or null: as planned"),
    Field("int", "num_prefill_items", ""),
    Field("int", "num_decode_items", ""),
    Field("int", "decode_only_ctas", "Hopper: first CTAs, no prefill before decode has run out"),
    Field("int", "prefill_only_ctas", "Hopper: next CTAs, no decode before prefill has run out"),
    Field("int", "prefill_share", "portable: of prefill_share + decode_share CTAs of an SM so"),
    Field("int", "decode_share", "          many begin with prefill"),
)
_HEADER_ALIGN = 64
_HEADER_DTYPE = struct_dtype(PLAN_HEADER, align=_HEADER_ALIGN)
PLAN_HEADER_BYTES = _HEADER_DTYPE.itemsize
_pack_header = packer(_HEADER_DTYPE).pack

PLAN_STRUCTS = "\n\n".join(
    (
        render_struct("PlanHeader", PLAN_HEADER, align=_HEADER_ALIGN),
        render_struct(
            "WorkItem", tuple(Field("int", name, doc) for name, doc in WORK_ITEM_FIELDS), align=16
        ),
    )
)

#: Results, plan and buffers; `buffer_arguments` fills these and the next two groups.
BUFFERS = (
    Field("u16*", "out", "[tokens, num_qo_heads, head_dim]"),
    Field("float*", "lse", "[tokens, num_qo_heads] natural log, or null"),
    Field("const PlanHeader*", "plan", "the work items lie behind it"),
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
HEADS = (
    Field("int", "num_kv_heads", ""),
    Field("int", "group", "query heads per KV head"),
)


def plan_header(plan: Plan, page_table: int, kv_lens: int) -> bytes:
    """Return the header of a plan on the device, `PLAN_HEADER_BYTES` long.

    Parameters
    ----------
    plan : Plan
        Its items follow the header: prefill, then decode.
    page_table : int
        Address of the flat page table on the device; 0 for a contiguous cache.
    kv_lens : int
        Address of exact lengths, int32 [requests], on the device: a request has the lesser of that
        and the planned number of keys. 0 where the planned ones are exact.
    """
    return _pack_header(
        page_table,
        kv_lens,
        len(plan.prefill),
        len(plan.decode),
        plan.decode_only_ctas,
        plan.prefill_only_ctas,
        plan.prefill_share,
        plan.decode_share,
    )


def buffer_arguments(plan: Plan, tensors: RunTensors, workspace: Workspace) -> dict[str, Any]:
    """Return outputs, plan and buffers by the names that they have in every family."""
    out, lse = tensors.out, tensors.lse
    return {
        "out": out.pointer,
        "out_stride_token": out.strides[0],
        "out_stride_head": out.strides[1],
        "lse": lse.pointer if lse else 0,
        "lse_stride_token": lse.strides[0] if lse else 0,
        "lse_stride_head": lse.strides[1] if lse else 0,
        "plan": workspace.plan.data.ptr,
        "partial_o": workspace.partial_o.data.ptr,
        "partial_lse": workspace.partial_lse.data.ptr,
        "counters": workspace.counters.data.ptr,
        "merge_counters": workspace.merge_counters.data.ptr,
        "num_kv_heads": plan.num_kv_heads,
        "group": plan.group,
    }
