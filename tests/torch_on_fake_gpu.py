"""PyTorch's tensors in host memory, which pass for tensors on the GPU of bytes (`fake_gpu`)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_gpu import H100, FakeGpu, install

from podrt import cache_write as front
from podrt.runtime import cache_writer
from podrt.tensors import cache_write, outputs, run_tensors, streams
from podrt.tensors.view import TensorView, view


def install_for_torch(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Let podrt find a GPU of bytes, and real tensors on it, to be written and read by nobody."""
    gpu: Any = install(monkeypatch)

    def view_on_gpu(tensor: Any, name: str, stream: int = 0) -> TensorView:
        seen = view(tensor, name, stream)
        return replace(seen, device=0) if isinstance(tensor, torch.Tensor) else seen

    for module in (cache_write, run_tensors):
        monkeypatch.setattr(module, "view", view_on_gpu)
    monkeypatch.setattr(front, "_device_of", lambda k: 0)
    monkeypatch.setattr(streams, "_current_stream", lambda like: gpu.stream)
    monkeypatch.setattr(outputs, "_torch_stream", lambda device, handle: nullcontext())
    monkeypatch.setattr(cache_writer, "_writers", {})
    monkeypatch.setattr(cache_writer, "Driver", lambda ordinal: gpu)
    monkeypatch.setattr(cache_writer, "device_info", lambda ordinal: H100)
    monkeypatch.setattr(cache_writer, "load_writer", gpu.load_kernel)
    return gpu  # type: ignore[no-any-return]
