"""`write_cache`: new keys and values into the pages of a cache, on a GPU or on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from podrt.runtime.cache_writer import writer_of
from podrt.tensors.cache_write import WriteTensors, view_write_tensors
from podrt.tensors.frameworks import framework_of
from podrt.tensors.host import to_numpy
from podrt.tensors.view import view


def write_cache(
    k: Any,
    v: Any,
    k_cache: Any,
    v_cache: Any,
    slot_mapping: Any,
    *,
    kv_layout: str = "NHD",
    stream: Any = None,
) -> None:
    """Write keys and values of new tokens to the pages of a cache, both in one launch.

    Returns without waiting for the GPU, and may be captured into a graph, which then reads k, v
    and `slot_mapping` where they were. Tensors in host memory are written with NumPy.

    Parameters
    ----------
    k, v : [tokens, num_kv_heads, head_dim]
        bfloat16 or float16, any strides but the last.
    k_cache, v_cache : [pages, page_size, num_kv_heads, head_dim]
        Caches (axes as `kv_layout` says) of the same element type, any strides but the last. Heads
        of `v` and `v_cache` may have another size than those of `k` and `k_cache`.
    slot_mapping : int64 [at most tokens]
        Token i goes to place ``slot_mapping[i] % page_size`` of page
        ``slot_mapping[i] // page_size``. Tokens with a slot that the cache does not have, such as
        -1, are not written, and neither are those beyond the slots. Two tokens of one slot leave
        either of them.
    kv_layout : {"NHD", "HND"}
        Order of the caches' axes, as for `podrt.HybridAttention`.
    stream : int, CuPy or torch stream, or anything with __cuda_stream__, optional
        The current stream of the framework of `k` if None.

    Raises
    ------
    ValueError, TypeError, UnsupportedConfigError
        A tensor does not fit; nothing has been written.
    DeviceError, CompileError
        There is no usable GPU, or the kernel did not compile.
    """
    device = _device_of(k)
    if device is not None:
        writer_of(device).write(k, v, k_cache, v_cache, slot_mapping, kv_layout, stream)
        return
    if stream is not None:
        raise ValueError(
            f"stream={stream!r}: orders work on a GPU, but this call writes on the host; "
            "leave it out"
        )
    _write_on_host(view_write_tensors(k, v, k_cache, v_cache, slot_mapping, kv_layout))


def _device_of(k: Any) -> int | None:
    """Return the number of the GPU that `k` lies on; None for host memory."""
    framework = framework_of(k)
    if framework == "torch" and k.is_cuda:
        return int(k.get_device())
    if framework == "cupy":
        return int(k.data.device_id)
    return view(k, "k").device


def _write_on_host(tensors: WriteTensors) -> None:
    slots = to_numpy(tensors.slots)
    k_cache, v_cache = to_numpy(tensors.k_cache), to_numpy(tensors.v_cache)
    pages, page_size = k_cache.shape[:2]
    tokens = np.flatnonzero((slots >= 0) & (slots < pages * page_size))
    page, place = np.divmod(slots[tokens], page_size)
    k_cache[page, place] = to_numpy(tensors.k)[tokens]
    v_cache[page, place] = to_numpy(tensors.v)[tokens]
