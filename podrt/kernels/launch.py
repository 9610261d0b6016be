"""From a variant, a plan and tensors to a launch."""

from __future__ import annotations

import math
from functools import cache

from podrt.jit import Build, LoadedKernel, build, load
from podrt.kernels.config import KernelConfig
from podrt.kernels.portable import new_params, num_ctas, source_of
from podrt.plan import Plan
from podrt.run_arguments import RunTensors
from podrt.workspace import Workspace


def compile_variant(config: KernelConfig) -> Build:
    """Compile a variant, or take it from the cache, without running it; needs no GPU.

    Raises
    ------
    CompileError
        NVRTC refused the source.
    MissingKernelError
        It is in no cache and ``PODRT_DISABLE_JIT`` is set.
    """
    return build(source_of(config))


@cache
def load_kernel(config: KernelConfig, device: int) -> LoadedKernel:
    """Return a variant on a device, compiling and loading it the first time."""
    return load(compile_variant(config), device)


def launch(
    config: KernelConfig,
    *,
    device: int,
    num_sms: int,
    stream: int,
    plan: Plan,
    page_table: int,
    tensors: RunTensors,
    workspace: Workspace,
    sm_scale: float,
) -> None:
    """Enqueue one kernel on `stream`.

    Parameters
    ----------
    config : KernelConfig
        The variant; it takes the sides of the plan that its form has.
    page_table : int
        Address of the flat page table on the device; 0 for a contiguous cache.
    workspace : Workspace
        Holds the plan's items.
    """
    q, k, v, out, lse = tensors.q, tensors.k_cache, tensors.v_cache, tensors.out, tensors.lse
    params = new_params(
        q=q.pointer,
        k=k.pointer,
        v=v.pointer,
        out=out.pointer,
        lse=lse.pointer if lse else 0,
        page_table=page_table,
        items=workspace.items.data.ptr,
        partial_o=workspace.partial_o.data.ptr,
        partial_lse=workspace.partial_lse.data.ptr,
        counters=workspace.counters.data.ptr,
        merge_counters=workspace.merge_counters.data.ptr,
        q_stride_token=q.strides[0],
        q_stride_head=q.strides[1],
        k_stride_page=k.strides[0],
        k_stride_token=k.strides[1],
        k_stride_head=k.strides[2],
        v_stride_page=v.strides[0],
        v_stride_token=v.strides[1],
        v_stride_head=v.strides[2],
        out_stride_token=out.strides[0],
        out_stride_head=out.strides[1],
        lse_stride_token=lse.strides[0] if lse else 0,
        lse_stride_head=lse.strides[1] if lse else 0,
        num_prefill_items=len(plan.prefill),
        num_decode_items=len(plan.decode),
        num_kv_heads=plan.num_kv_heads,
        group=plan.group,
        scale_log2=sm_scale * math.log2(math.e),
    )
    grid = num_ctas(config, plan.num_prefill_units, plan.num_decode_units, num_sms)
    load_kernel(config, device)(
        (grid,),
        params,
        smem_bytes=config.smem_bytes,
        threads=config.threads,
        stream_handle=stream,
    )
