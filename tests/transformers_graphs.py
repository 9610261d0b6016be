"""CUDA graphs of transformers played on a CPU: operators are recorded, replayed without Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from podrt.integrations.transformers.engine import Engine

_engines: list[Engine] = []
_run, _write = Engine.run, Engine.write


@torch.library.custom_op("podrt_test::attend", mutates_args=())
def _attend(
    which: int, layer_idx: int, q: torch.Tensor, sinks: torch.Tensor | None
) -> torch.Tensor:
    """A launch, as a graph holds it: tensors are baked in, the plan is looked up."""
    return _run(_engines[which], layer_idx, q, sinks)


@torch.library.custom_op("podrt_test::write", mutates_args=())
def _write_cache(
    which: int, layer_idx: int, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor
) -> None:
    """The launch that writes to the cache, which is no argument of it."""
    _write(_engines[which], layer_idx, k, v, slots)


class RecordedGraph(TorchDispatchMode):
    """The operators of a step, whose results go to the memory of their first time when replayed."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self._calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, out in self._calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def reset(self) -> None:
        self._calls.clear()


def record_graphs(monkeypatch: Any, processor: Any) -> list[RecordedGraph]:
    """Let an engine's processor on a CPU do as it does with CUDA graphs; returns its graphs."""
    from transformers.generation.continuous_batching import model_runner

    graphs: list[RecordedGraph] = []

    def create() -> RecordedGraph:
        graphs.append(RecordedGraph())
        return graphs[-1]

    @contextmanager
    def capture(graph: RecordedGraph, **_: Any) -> Iterator[None]:
        with graph:
            yield

    def number_of(engine: Engine) -> int:
        if engine not in _engines:
            _engines.append(engine)
        return _engines.index(engine)

    def run(self: Engine, layer_idx: int, q: Any, sinks: Any = None) -> Any:
        return _attend(number_of(self), layer_idx, q, sinks)

    def write(self: Engine, layer_idx: int, k: Any, v: Any, slots: Any) -> None:
        _write_cache(number_of(self), layer_idx, k, v, slots)

    monkeypatch.setattr(Engine, "run", run)
    monkeypatch.setattr(Engine, "write", write)
    monkeypatch.setattr(model_runner, "create_accelerator_graph", create)
    monkeypatch.setattr(model_runner, "accelerator_graph_capture_context", capture)
    monkeypatch.setattr(model_runner, "memory_pool_context", lambda _: nullcontext())
    runner, ios = processor.model_runner, processor.inputs_and_outputs
    runner.mem_pool = runner.graph_pool_id = None
    runner.use_cuda_graph_varlen = ios.use_cuda_graph_varlen = runner.pad_inputs = True
    return graphs
