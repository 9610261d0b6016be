"""The layer, the GPU and the batches of a trace that a command plans for, with their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from podrt.cli._options import PAGE_SIZE_HELP
from podrt.errors import DeviceError
from podrt.gpu.device import DeviceInfo, current_device
from podrt.gpu.nominal import GPUS, H100
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler
from podrt.spec.attention import AttentionSpec, make_spec
from podrt.workloads.chunked_prefill import hybrid_steps, read_trace
from podrt.workloads.files import named_by
from podrt.workloads.lengths import parse_heads, parse_page_size

_GPU_NAMES = " or ".join(GPUS)

LayerHeads = Annotated[str, typer.Option("--heads", metavar="QO/KV", help="Query and KV heads.")]
LayerHeadDim = Annotated[int, typer.Option("--head-dim", help="A multiple of 8 from 32 to 256.")]
LayerVHeadDim = Annotated[
    int | None, typer.Option("--v-head-dim", help="Likewise of values; as of keys if not given.")
]
LayerPageSize = Annotated[str, typer.Option("--page-size", metavar="TOKENS", help=PAGE_SIZE_HELP)]
LayerDtype = Annotated[str, typer.Option("--dtype", help="bfloat16 or float16.")]
LayerWindow = Annotated[
    int | None,
    typer.Option("--window-left", min=0, help="Keys before its own that a token sees; or all."),
]
LayerSoftCap = Annotated[
    float | None, typer.Option("--soft-cap", metavar="CAP", help="Cap of the scores; or none.")
]
PolicyOption = Annotated[str, typer.Option("--policy", help="As of podrt.HybridAttention.")]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", help=f"{_GPU_NAMES}. Default: this GPU, else h100.")
]
BudgetOption = Annotated[
    int, typer.Option("--budget", min=1, help="Query tokens of a batch of a trace.")
]
BatchesOption = Annotated[int, typer.Option("--batches", min=1, help="Batches of a trace.")]
MaxKvTokensOption = Annotated[
    int,
    typer.Option("--max-kv-tokens", min=1, help="Room of a trace's KV cache; bounds the decodes."),
]


def layer_of(
    heads: str,
    head_dim: int,
    page_size: str,
    dtype: str,
    window_left: int | None = None,
    soft_cap: float | None = None,
    v_head_dim: int | None = None,
) -> AttentionSpec:
    """Return the causal layer of some options; raises as `podrt.HybridAttention`.

    Parameters
    ----------
    heads : str
        Such as ``"32/8"``.
    page_size : str
        As `parse_page_size` reads it.
    """
    qo, kv = parse_heads(heads)
    pages = parse_page_size(page_size)
    return make_spec(
        *(qo, kv, head_dim, pages, "NHD", dtype, True, None, window_left, soft_cap),
        v_head_dim=v_head_dim,
    )


def scheduler_of(
    heads: str,
    head_dim: int,
    page_size: str,
    dtype: str,
    policy: str,
    gpu: str | None,
    window_left: int | None = None,
    soft_cap: float | None = None,
    v_head_dim: int | None = None,
) -> Scheduler:
    """Return what schedules batches of a layer; `gpu_of` and `layer_of` have the parameters."""
    layer = layer_of(heads, head_dim, page_size, dtype, window_left, soft_cap, v_head_dim)
    return Scheduler(layer, gpu_of(gpu), parse_policy(policy))


def gpu_of(name: str | None) -> DeviceInfo:
    """Return a GPU by name; for None the current one, or an H100 where there is none."""
    if name is None:
        try:
            return current_device()
        except DeviceError:
            return H100
    if name not in GPUS:
        raise ValueError(f"gpu={name!r}: allowed are {_GPU_NAMES}")
    return GPUS[name]


def batches_of_trace(
    trace: Path, *, budget: int, batches: int, max_kv_tokens: int
) -> list[list[tuple[int, int]]]:
    """Return ``(q_len, kv_len)`` of the requests of each batch that `podrt demo` would run.

    ValueError names --trace where it cannot be read.
    """
    with named_by("--trace", trace):
        requests = read_trace(trace)
    steps = hybrid_steps(requests, budget=budget, max_kv_tokens=max_kv_tokens, count=batches)
    return [step.lengths for step in steps]
