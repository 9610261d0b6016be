"""Random turns of everything a server does: each launch finds the batch that it should."""

from __future__ import annotations

import gc
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu
from runtime_support import LIMITS, STREAM, capture, is_of, layer, plan, table_of, tensors

STREAMS = (STREAM, 8, 9)
TURNS = 150


class Server:
    """An object, and what its launches should find, by the stream that they were asked for on."""

    def __init__(self, gpu: FakeGpu, seed: int) -> None:
        self.gpu, self.rng = gpu, np.random.default_rng(seed)
        self.attention = layer()
        self.expected: dict[int, list[Any]] = defaultdict(list)
        self.graphs: dict[int, Any] = {}  # what a replay computes; None: whatever is planned
        self.is_reserved = False
        self.plan()

    @property
    def planned(self) -> Any:
        return self.attention.current_plan

    def stream(self) -> int:
        return STREAM if self.is_reserved else int(self.rng.choice(STREAMS))

    def plan(self) -> None:
        num = int(self.rng.integers(1, 9))
        q_lens = self.rng.choice([0, 1, 1, 1, 2, 30], num)
        kv_lens = self.rng.integers(0, 3000, num).astype(np.int32)
        batch = np.cumsum([0, *q_lens]).astype(np.int32), kv_lens
        table: Any = table_of(num)
        if self.rng.random() < 0.3:
            table = np.zeros((num, 188), np.int32)
        plan(self.attention, batch, block_table=table, stream=self.stream())
        self.tokens = int(q_lens.sum())

    def run(self) -> None:
        stream = self.stream()
        rows = self.tokens + (int(self.rng.integers(0, 9)) if self.is_reserved else 0)
        self.attention.run(**tensors(rows), stream=stream)
        self.expected[stream] += [self.planned] * len(self.attention.variants)

    def fail(self) -> None:
        """Make whatever comes next run out of memory, sooner or later."""
        self.gpu.allocations_left = int(self.rng.integers(0, 3))
        before = self.planned
        try:
            getattr(self, str(self.rng.choice(["plan", "reserve"])))()
        except MemoryError:
            assert self.planned is before
        self.gpu.allocations_left = 1 << 30

    def capture(self) -> None:
        rows = max(self.tokens, 1) if self.is_reserved else self.tokens
        graph = capture(self.gpu, self.attention, rows)
        self.gpu.graphs.setdefault(graph, [])
        self.graphs[graph] = None if self.is_reserved else self.planned

    def replay(self) -> None:
        for graph, found in list(self.graphs.items()):
            if self.rng.random() < 0.5:
                self.gpu.replay(graph, STREAM)
                num = len(self.gpu.graphs[graph])
                self.expected[STREAM] += [self.planned if found is None else found] * num

    def reserve(self) -> None:
        before = self.planned
        self.attention.reserve(**LIMITS, stream=STREAM)
        for graph, found in self.graphs.items():
            self.graphs[graph] = before if found is None else found
        self.is_reserved, self.tokens = True, 0

    def release(self) -> None:
        self.gpu.finish()
        self.graphs = {graph: None for graph, found in self.graphs.items() if found is None}
        self.attention.release_graphs()
        gc.collect()

    def finish_some(self) -> None:
        self.gpu.finish(int(self.rng.choice(STREAMS)))

    def check(self) -> None:
        self.gpu.finish()
        got = defaultdict(list)
        for launch in self.gpu.launches:
            got[launch.stream].append(launch)
        for stream, plans in self.expected.items():
            assert len(got[stream]) == len(plans)
            assert all(is_of(launch, one) for launch, one in zip(got[stream], plans, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_every_launch_finds_its_batch(gpu: FakeGpu, seed: int) -> None:
    server = Server(gpu, seed)
    usual = ["plan", "plan", "run", "run", "run", "run", "replay", "finish_some", "capture"]
    for turn in range(TURNS):
        rare = ["fail", "release", *(["reserve"] if turn > TURNS // 3 else [])]
        calls = usual if server.rng.random() < 0.93 else rare
        getattr(server, str(server.rng.choice(calls)))()
    server.check()
    assert sum(map(len, server.expected.values())) > TURNS // 3
