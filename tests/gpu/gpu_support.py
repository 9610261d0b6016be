"""What several files of GPU tests share."""

from __future__ import annotations

import numpy as np
import pytest
from attention_case import poisoned, to_gpu

from podrt import HybridAttention
from podrt.gpu.device import current_device
from podrt.kernels.hopper.config import HOPPER_ARCH

POISON = 0x7FFF  # NaN in both element types

SPIN = r"""
extern "C" __global__ void fill_late(int* out, int value, long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) {}
    out[threadIdx.x] = value;
}
"""
SPIN_CYCLES = 50_000_000  # tens of milliseconds: long enough for a missing wait to show


def skip_without_hopper():
    if current_device().arch.name != HOPPER_ARCH:
        pytest.skip("the Hopper family needs an sm_90a GPU")


def skip_with_one_gpu():
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")


def inputs_on_gpu(case):
    """Return q, k_cache and v_cache of a case as CuPy arrays."""
    return [to_gpu(array) for array in (case.q, case.k_cache, case.v_cache)]


def check_stays_within_heads(case, policy, *, allowed_steps):
    """Run a paged case into every second head of a tensor; those between must stay as they were."""
    import cupy

    rows, heads, width = case.out_shape
    larger = poisoned((rows, 2 * heads, width), case.q.dtype)
    before = bits(larger).copy()
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    attention.run(*inputs_on_gpu(case), out=larger[:, ::2])
    case.check(larger[:, ::2].get(), allowed_steps=allowed_steps)
    assert (bits(larger)[:, 1::2] == before[:, 1::2]).all()


def to_torch(array, device="cuda"):
    """Copy an array of either element type to the GPU as a torch tensor."""
    import torch

    dtype = torch.float16 if array.dtype == np.float16 else torch.bfloat16
    return torch.from_numpy(array.view(np.int16)).to(device).view(dtype)


def from_torch(tensor, dtype):
    """Copy a torch tensor of either element type to the host."""
    import torch

    return tensor.contiguous().view(torch.int16).cpu().numpy().view(dtype)


def bits(array):
    """Return the bits of a CuPy or NumPy array of 16-bit elements, on the host."""
    host = array.get() if hasattr(array, "get") else array
    return host.view(np.uint16)


def busy_maker():
    """Return a function that keeps CuPy's current stream busy for tens of milliseconds."""
    import cupy

    kernel = cupy.RawKernel(SPIN, "fill_late")
    target = cupy.zeros(32, cupy.int32)
    return lambda: kernel((1,), (32,), (target, np.int32(1), np.int64(SPIN_CYCLES)))
