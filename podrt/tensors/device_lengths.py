"""Exact key lengths that only the GPU knows."""

from __future__ import annotations

from typing import Any

from podrt.tensors.checks import require_dtype, require_rank, require_unit_stride
from podrt.tensors.view import TensorView, view


def view_device_lengths(values: Any, num_requests: int, device: int) -> TensorView | None:
    """View `device_kv_lens`: int32 ``[at least num_requests]`` on a GPU; None stays None.

    Raises
    ------
    ValueError, TypeError
        It is too short, lies elsewhere or has other elements.
    """
    if values is None:
        return None
    lengths = view(values, "device_kv_lens")
    require_rank(lengths, 1, "[requests]")
    require_dtype(lengths, "int32")
    require_unit_stride(lengths)
    if lengths.device != device:
        raise ValueError(
            f"device_kv_lens: lies on {lengths.place}, expected cuda:{device}; lengths that the "
            "host knows are kv_lens"
        )
    if lengths.shape[0] < num_requests:
        raise ValueError(
            f"device_kv_lens: has {lengths.shape[0]} entries, expected at least {num_requests}, "
            "one for each request of kv_lens"
        )
    return lengths
