"""What the kernels of all families are given: a plan on the device, and the arguments of a launch.

What `plan` knows of a batch lies in memory, as a header and the work items behind it, so that a
launch recorded in a CUDA graph serves any batch. Arguments hold only what `run` knows.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.kernels.structs import Field, packer, render_struct, struct_dtype
from podrt.plan import MAX_RUNS, WORK_ITEM_FIELDS, Plan
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors
from podrt.tensors.view import TensorView

_RUNS = MAX_RUNS + 1
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
    Field(
        "int",
        "prefill_runs",
        "ascending: where runs of prefill items begin, common/unit.cuh",
        _RUNS,
    ),
    Field("const u64*", "tree_mask", "[tokens] bits of new keys, or null: common/tree.cuh"),
    Field("const int*", "joins", "JoinedToken[num_joined_tokens], then JoinedTile[]"),
    Field("int", "num_joined_tokens", "read by templates/merge/joins.cu.jinja alone"),
)
_HEADER_ALIGN = 64
_MAX_STRIDE = 2**31 - 1
PLAN_HEADER_DTYPE = struct_dtype(PLAN_HEADER, align=_HEADER_ALIGN)
PLAN_HEADER_BYTES = PLAN_HEADER_DTYPE.itemsize
#: Least memory of a plan on the device: kernels fetch so much of it to L2 before they know more.
PLAN_BYTES_AT_LEAST = 32 * 1024
_pack_header = packer(PLAN_HEADER_DTYPE).pack_into

PLAN_STRUCTS = "\n\n".join(
    (
        render_struct("PlanHeader", PLAN_HEADER, align=_HEADER_ALIGN),
        render_struct(
            "WorkItem", tuple(Field("int", name, doc) for name, doc in WORK_ITEM_FIELDS), align=16
        ),
        f"constexpr int kPlanBytesAtLeast = {PLAN_BYTES_AT_LEAST};  // memory of header and items",
    )
)

#: Results, sinks, plan and buffers; `shared_arguments` has them.
BUFFERS = (
    Field("u16*", "out", "[tokens, num_qo_heads, v_head_dim]"),
    Field("float*", "lse", "[tokens, num_qo_heads] natural log, or null"),
    Field("const float*", "sinks", "[num_qo_heads] logits of no key, natural base, or null"),
    Field("const PlanHeader*", "plan", "the work items lie behind it"),
    Field("float*", "partial_o", "[partial_rows * num_kv_heads, v_head_dim]"),
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
    Field("u32", "group_reciprocal", "(2^32 - 1) / group, rounded down: common/item.cuh"),
)
#: What becomes of a product of q and k before the softmax, in base 2.
SCORES = (
    Field("int", "window_left", "keys before its own that a token sees; 2^30 for all"),
    Field("int", "sinks_stride", ""),
    Field("float", "soft_cap_exponent", "2 log2(e) sm_scale / cap, or 0: common/soft_cap.cuh"),
    Field("float", "scale_log2", "sm_scale * log2(e), or cap * log2(e): factor after tanh"),
)
#: More keys than any request has, and so few that positions less so many fit 32 bits.
NO_WINDOW = 2**30


def write_plan_header(
    to: npt.NDArray[np.uint8],
    plan: Plan,
    page_table: int,
    kv_lens: int,
    tree_mask: int = 0,
    joins: int = 0,
) -> None:
    """Write the header of a plan on the device to the first `PLAN_HEADER_BYTES` of an array.

    Parameters
    ----------
    to : uint8 array
        Where to.
    plan : Plan
        Its items follow the header: prefill, then decode.
    page_table : int
        Address of the flat page table on the device; 0 for a contiguous cache.
    kv_lens : int
        Address of exact lengths, int32 [requests], on the device: a request has the lesser of that
        and the planned number of keys. 0 where the planned ones are exact.
    tree_mask : int
        Address of the tree mask, a 64-bit word for each row of q, on the device; 0 for none.
    joins : int
        Address of the plan's joins on the device; 0 for none.
    """
    _pack_header(
        to.data,
        0,
        page_table,
        kv_lens,
        len(plan.prefill),
        len(plan.decode),
        plan.decode_only_ctas,
        plan.prefill_only_ctas,
        plan.prefill_share,
        plan.decode_share,
        _packed_runs(plan.prefill_runs),
        tree_mask,
        joins,
        plan.num_joined_tokens,
    )


@lru_cache(maxsize=1024)  # most batches have none, or one like that of the batch before
def _packed_runs(ends: tuple[int, ...]) -> bytes:
    """Return where runs begin, and the last one ends; those that there are not are empty."""
    return np.array((0,) * (_RUNS - len(ends)) + ends, np.int32).tobytes()


class Buffers(NamedTuple):
    """Addresses of the memory that a launch needs besides its tensors."""

    plan: int
    partial_o: int
    partial_lse: int
    counters: int
    merge_counters: int


def shared_arguments(spec: AttentionSpec, tensors: RunTensors, buffers: Buffers) -> dict[str, Any]:
    """Return the arguments that do not change between launches and that every family has."""
    q, out = short_strides(tensors.q), short_strides(tensors.out)
    lse = short_strides(tensors.lse) if tensors.lse is not None else (0, 0)
    (sinks,) = short_strides(tensors.sinks) if tensors.sinks is not None else (0,)
    return {
        **buffers._asdict(),
        "q_stride_token": q[0],
        "q_stride_head": q[1],
        "out_stride_token": out[0],
        "out_stride_head": out[1],
        "lse_stride_token": lse[0],
        "lse_stride_head": lse[1],
        "num_kv_heads": spec.num_kv_heads,
        "group": spec.group,
        "group_reciprocal": (2**32 - 1) // spec.group,
        "sinks_stride": sinks,
        **_score_arguments(spec),
    }


def _score_arguments(spec: AttentionSpec) -> dict[str, Any]:
    window, cap, log2_e = spec.mask.window_left, spec.logits_soft_cap, math.log2(math.e)
    return {
        "window_left": NO_WINDOW if window is None else min(window, NO_WINDOW),
        "soft_cap_exponent": 0.0 if cap is None else 2 * log2_e * spec.sm_scale / cap,
        "scale_log2": (spec.sm_scale if cap is None else cap) * log2_e,
    }


def short_strides(tensor: TensorView) -> tuple[int, ...]:
    """Return strides that fit 32 bits: those that do not belong to extents of 1, and count not."""
    return tuple(stride if abs(stride) <= _MAX_STRIDE else 0 for stride in tensor.strides)
