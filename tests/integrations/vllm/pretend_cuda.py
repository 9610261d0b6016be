"""Lets vLLM's engine run on a CPU in the belief that it has an H100.

Tensors "on CUDA" lie in host memory, streams and events do nothing, vLLM's Triton kernels run in
Triton's interpreter, and CUDA graphs are recorded (`recorded_graphs`). Import it before vLLM.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import recorded_graphs
import torch
import torch._dynamo
import torch._inductor
import torch.distributed.tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
GIB = 1 << 30


class _OnTheCpu(TorchFunctionMode):
    """Has every call that names a CUDA device use the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if func is torch.device or name == "device":
            return func(*args, **(kwargs or {}))
        args = tuple(_moved(value) for value in args)
        kwargs = {key: _moved(value) for key, value in (kwargs or {}).items()}
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return args[0] if name == "pin_memory" else func(*args, **kwargs)


def _moved(value: Any) -> Any:
    is_cuda = (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.partition(":")[0] == "cuda"
    )
    return CPU if is_cuda else value


class _Nothing:
    """A stream, an event, a device: a context in which nothing is different."""

    cuda_stream = 0
    device = torch.device("cuda:0")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: Any) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 1.0


class _Stream(_Nothing):
    pass


class _Event(_Nothing):
    pass


class _Generator(torch.Generator):
    def __new__(cls, device: Any = None) -> Any:
        return super().__new__(cls, device="cpu")


_PROPERTIES = SimpleNamespace(
    multi_processor_count=132,
    name="NVIDIA H100",
    major=9,
    minor=0,
    total_memory=80 * GIB,
    is_integrated=0,
    warp_size=32,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 << 20,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    gcnArchName="",
    uuid="GPU-0",
)


def install() -> None:
    """Pretend, in this process, for good. Before vLLM is imported."""
    _OnTheCpu().__enter__()
    recorded_graphs.Recorder().__enter__()
    stream = _Stream()
    _replace(
        torch.cuda,
        is_available=True,
        device_count=1,
        current_device=0,
        is_initialized=True,
        current_stream=stream,
        default_stream=stream,
        stream=_Nothing(),
        get_device_properties=_PROPERTIES,
        get_device_capability=(9, 0),
        get_device_name=_PROPERTIES.name,
        mem_get_info=(79 * GIB, 80 * GIB),
        memory_stats={},
        memory_reserved=0,
        memory_allocated=0,
        max_memory_allocated=0,
        get_allocator_backend="native",
        is_current_stream_capturing=False,
        graph_pool_handle=(0, 0),
        **dict.fromkeys(
            (
                "set_device",
                "synchronize",
                "empty_cache",
                "init",
                "_lazy_init",
                "set_stream",
                "reset_peak_memory_stats",
                "manual_seed_all",
                "manual_seed",
            )
        ),
    )
    _replace(torch.cuda.memory, get_allocator_backend="native")
    _replace(
        torch.accelerator,
        is_available=True,
        device_count=1,
        current_accelerator=torch.device("cuda"),
        current_device_index=0,
        get_memory_info=(79 * GIB, 80 * GIB),
        memory_stats={},
        memory_reserved=0,
        memory_allocated=0,
        max_memory_allocated=0,
        current_stream=stream,
        **dict.fromkeys(
            (
                "set_device_index",
                "synchronize",
                "empty_cache",
                "empty_host_cache",
                "reset_peak_memory_stats",
                "set_stream",
            )
        ),
    )
    module: Any = torch
    module.cuda.Stream = module.Stream = _Stream
    module.cuda.Event = module.Event = _Event
    module.cuda.device = module.accelerator.device_index = _Nothing
    module.cuda.CUDAGraph = recorded_graphs.RecordedGraph
    module.cuda.graph = recorded_graphs.graph
    module.Generator = _Generator
    module.Tensor.is_pinned = lambda self, *args: True
    module.Tensor.record_stream = lambda self, *args: None
    module._C._accelerator_setAllocatorSettings = lambda *args: None
    _replace_compiled_parts()


def after_vllm() -> None:
    """Pretend in vLLM's own modules. After vLLM is imported."""
    import vllm.third_party.pynvml as nvml

    memory = SimpleNamespace(total=80 * GIB, free=79 * GIB, used=GIB)
    _replace(
        nvml,
        nvmlInit=None,
        nvmlShutdown=None,
        nvmlDeviceGetCount=1,
        nvmlDeviceGetHandleByIndex=object(),
        nvmlDeviceGetCudaComputeCapability=(9, 0),
        nvmlDeviceGetName=_PROPERTIES.name,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetUUID=_PROPERTIES.uuid,
    )
    import vllm.utils.torch_utils as torch_utils
    from vllm.platforms import current_platform

    platform: Any = type(current_platform)
    platform.dist_backend, platform.dispatch_key = "gloo", "CPU"
    import vllm.v1.sample.ops.topk_topp_sampler as sampler

    sampler.apply_top_k_top_p = lambda logits, *args, **kwargs: logits
    _leave_products_as_they_are()
    torch_utils.get_accelerator_view_from_cpu_tensor = lambda tensor: tensor
    import vllm.v1.worker.gpu_worker as worker

    worker.kernel_warmup = lambda *args, **kwargs: None
    # Inside of vLLM's operators, calls that name a CUDA device are not seen.
    init_workspaces = worker.init_workspace_manager
    worker.init_workspace_manager = lambda device, *args, **kwargs: init_workspaces(
        CPU, *args, **kwargs
    )


def _leave_products_as_they_are() -> None:
    """Let batch-invariant mode keep PyTorch's matrix products: Triton's interpreter is slow."""
    import vllm.model_executor.determinism.batch_invariant as invariance
    from vllm.model_executor.layers import linear, vocab_parallel_embedding

    _replace(invariance, init_batch_invariance=None)
    for module in (linear, vocab_parallel_embedding):
        module.linear_batch_invariant = torch.nn.functional.linear


def _replace(owner: Any, **results: Any) -> None:
    """Have functions of a module return these results, whatever they are asked."""
    for name, result in results.items():
        setattr(owner, name, lambda *args, _result=result, **kwargs: _result)


def _replace_compiled_parts() -> None:
    """Register, in PyTorch, those of vLLM's compiled operators that a dense Llama needs."""
    for name in ("_C_stable_libtorch", "_moe_C_stable_libtorch", "vllm_flash_attn._vllm_fa2_C"):
        sys.modules[f"vllm.{name}"] = ModuleType(f"vllm.{name}")
    _define("silu_and_mul(Tensor! result, Tensor input) -> ()", _silu_and_mul)
    _define(
        "rms_norm(Tensor! result, Tensor input, Tensor? weight, float epsilon) -> ()", _rms_norm
    )
    _define(
        "fused_add_rms_norm(Tensor! input, Tensor! residual, Tensor? weight, float epsilon) -> ()",
        _fused_add_rms_norm,
    )
    _define("weak_ref_tensor(Tensor input) -> Tensor", lambda tensor: tensor.view_as(tensor))
    _define("get_cuda_view_from_cpu_tensor(Tensor cpu_tensor) -> Tensor", lambda t: t.view_as(t))
    for name in (
        "cutlass_scaled_mm_supports_fp8",
        "cutlass_scaled_mm_supports_block_fp8",
        "cutlass_scaled_mm_supports_fp4",
        "cutlass_group_gemm_supported",
        "mxfp4_experts_quant_supported",
    ):
        _define(f"{name}(int cuda_device_capability) -> bool", lambda capability: False)


_libraries: list[Any] = []


def _define(schema: str, function: Any) -> None:
    name = schema.partition("(")[0]
    library = torch.library.Library("_C", "FRAGMENT")
    library.define(schema)
    library.impl(name, function, "CompositeExplicitAutograd")
    _libraries.append(library)


def _silu_and_mul(result: Any, x: Any) -> None:
    half = x.shape[-1] // 2
    torch.mul(torch.nn.functional.silu(x[..., :half]), x[..., half:], out=result)


def _rms_norm(result: Any, x: Any, weight: Any, epsilon: float) -> None:
    result.copy_(torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, epsilon))


def _fused_add_rms_norm(x: Any, residual: Any, weight: Any, epsilon: float) -> None:
    residual.add_(x)
    x.copy_(torch.nn.functional.rms_norm(residual, (x.shape[-1],), weight, epsilon))
