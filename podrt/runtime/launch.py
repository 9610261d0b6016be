"""From a variant, a plan and tensors to a launch."""

from __future__ import annotations

from podrt.jit import Build, LoadedKernel, build, load, remembered
from podrt.kernels.families import Variant, source_of
from podrt.kernels.hopper import host as hopper
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.portable import host as portable
from podrt.plan import Plan
from podrt.runtime.workspace import Workspace
from podrt.tensors.run_tensors import RunTensors


def compile_variant(config: Variant) -> Build:
    """Compile a variant, or take it from the cache, without running it; needs no GPU.

    Raises
    ------
    CompileError
        NVRTC refused the source.
    MissingKernelError
        It is in no cache and ``PODRT_DISABLE_JIT`` is set.
    """
    return build(source_of(config))


@remembered
def load_kernel(config: Variant, device: int) -> LoadedKernel:
    """Return a variant on a device, compiling and loading it the first time."""
    return load(compile_variant(config), device)


def launch(
    config: Variant,
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
    config : Variant
        The variant; it takes the sides of the plan that its form has.
    page_table : int
        Address of the flat page table on the device; 0 for a contiguous cache.
    workspace : Workspace
        Holds the plan's items.
    """
    if isinstance(config, HopperConfig):
        grid = hopper.num_ctas(config, plan, num_sms)
        params = hopper.params_of(config, plan, tensors, workspace, page_table, sm_scale)
    else:
        grid = portable.num_ctas(config, plan.num_prefill_units, plan.num_decode_units, num_sms)
        params = portable.params_of(plan, tensors, workspace, page_table, sm_scale)
    load_kernel(config, device)(
        (grid,),
        params,
        smem_bytes=config.smem_bytes,
        threads=config.threads,
        stream_handle=stream,
    )
