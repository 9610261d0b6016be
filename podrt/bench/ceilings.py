"""What the GPU of a run reaches at best: a large matrix product and a long read of memory."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from podrt.bench.timing import Timing, Work, time_all
from podrt.gpu.device import load_cupy

_SIDE = 8192
_READ_BYTES = 4 << 30
_READ_SHARE = 8


def measure_ceilings() -> dict[str, float | None]:
    """Return ``matmul_tflops`` (bfloat16 by PyTorch, or float16 by CuPy) and ``read_gbs``.

    Both are the best of their samples; None where the library at hand could not do it.
    """
    cupy = load_cupy()
    size = min(_READ_BYTES, cupy.cuda.runtime.memGetInfo()[1] // _READ_SHARE) // 4
    buffer, largest = cupy.arange(size, dtype="int32"), cupy.empty((), "int32")
    read = Work(lambda: buffer.max(out=largest))
    matmul_us, read_us = (_best_us(timing) for timing in time_all([_product(), read]))
    return {
        "matmul_tflops": None if matmul_us is None else round(2 * _SIDE**3 / matmul_us / 1e6, 1),
        "read_gbs": None if read_us is None else round(buffer.nbytes / read_us / 1e3, 1),
    }


def _best_us(timing: Timing | Exception) -> float | None:
    return None if isinstance(timing, Exception) else min(timing.samples_us)


def _product() -> Work:
    """The product of two random matrices, by the best library there is."""
    cupy = load_cupy()
    random = cupy.random.RandomState(0)
    a, b = (random.standard_normal((_SIDE, _SIDE), dtype="float32") for _ in range(2))
    if find_spec("torch"):
        return _torch_product(a, b)
    a, b = a.astype("float16"), b.astype("float16")
    c = cupy.empty_like(a)
    return Work(lambda: cupy.matmul(a, b, out=c))


def _torch_product(a: Any, b: Any) -> Work:
    import torch

    a, b = (torch.from_dlpack(matrix).to(torch.bfloat16) for matrix in (a, b))
    c = torch.empty_like(a)
    stream = torch.cuda.ExternalStream(load_cupy().cuda.get_current_stream().ptr)

    def enqueue() -> None:
        with torch.cuda.stream(stream):
            torch.matmul(a, b, out=c)

    return Work(enqueue)
