"""The layer and the GPU that a command plans for."""

from __future__ import annotations

from podrt.cli._options import parse_heads
from podrt.errors import DeviceError
from podrt.gpu.device import DeviceInfo, current_device
from podrt.gpu.nominal import GPUS, H100
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler
from podrt.spec.attention import make_spec

GPU_NAMES = " or ".join(GPUS)


def scheduler_of(
    heads: str, head_dim: int, page_size: int, dtype: str, policy: str, gpu: str | None
) -> Scheduler:
    """Return what schedules batches of a layer; raises as `podrt.HybridAttention`.

    Parameters
    ----------
    heads : str
        Such as ``"32/8"``.
    page_size : int
        0 for a contiguous cache.
    gpu : str, optional
        One of `GPU_NAMES`; if None the current one, or an H100 where there is none.
    """
    qo, kv = parse_heads(heads)
    layer = make_spec(qo, kv, head_dim, page_size or None, "NHD", dtype, True, None)
    return Scheduler(layer, gpu_of(gpu), parse_policy(policy))


def gpu_of(name: str | None) -> DeviceInfo:
    """Return a GPU by name, the current one, or an H100."""
    if name is None:
        try:
            return current_device()
        except DeviceError:
            return H100
    if name not in GPUS:
        raise ValueError(f"gpu={name!r}: allowed are {GPU_NAMES}")
    return GPUS[name]
