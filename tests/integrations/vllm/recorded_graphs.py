"""A recorder in place of CUDA graphs: a replay repeats tensor operations and skips Python.

Operations of PyTorch that run while a graph is being captured are kept with their tensors. A replay
does them again on the same tensors, and copies what they give to where the captured ones put it.
Operators of vLLM count as Python: what they enqueue says so itself, through `record`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Graphs captured and replayed so far.
counts = {"captured": 0, "replayed": 0}

_capturing: RecordedGraph | None = None


class RecordedGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.work: list[Callable[[], None]] = []

    def capture_begin(self, *args: Any, **kwargs: Any) -> None:
        global _capturing
        assert _capturing is None, "a capture within a capture"
        _capturing = self

    def capture_end(self) -> None:
        global _capturing
        _capturing = None
        counts["captured"] += 1

    def replay(self) -> None:
        counts["replayed"] += 1
        for work in self.work:
            work()


@contextmanager
def graph(recorded: RecordedGraph, *args: Any, **kwargs: Any) -> Iterator[None]:
    """Stands for `torch.cuda.graph`."""
    recorded.capture_begin()
    try:
        yield
    finally:
        recorded.capture_end()


def record(work: Callable[[bool], None]) -> None:
    """Do what a kernel launch does, now and at every replay; it is told whether it is captured."""
    if _capturing is not None:
        _capturing.work.append(lambda: work(True))
        work(True)
    else:
        work(False)


class Recorder(TorchDispatchMode):
    """Keeps operations while a graph is being captured. To be entered once, for good."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recording = _capturing
        result = func(*args, **kwargs)
        # An operator of vLLM may have ended the capture and begun another.
        if recording is not None and func.namespace != "vllm":
            _keep(recording, func, args, kwargs, result)
        return result


def _keep(recording: RecordedGraph, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    known = {_memory_of(x) for x in _tensors((args, kwargs))}
    made = [x for x in _tensors(result) if _memory_of(x) not in known]
    is_written = func._schema.is_mutable
    if not made and not is_written:
        return  # a view

    def again() -> None:
        fresh = func(*args, **kwargs)
        for old, new in zip(_tensors(result), _tensors(fresh), strict=True):
            if _memory_of(old) not in known:
                old.copy_(new)

    recording.work.append(again)


def _memory_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(tree: Any) -> list[torch.Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
