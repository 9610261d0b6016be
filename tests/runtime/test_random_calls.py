"""Random turns of everything a server does: each launch finds the batch that it should."""

from __future__ import annotations

import gc
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu
from runtime_support import (
    LIMITS,
    STREAM,
    capture,
    is_of,
    layer,
    plan,
    reserved,
    table_of,
    tensors,
)

from podrt.plan import GROWTH_STEP

STREAMS = (STREAM, 8, 9)
TURNS = 150


class Server:
    """An object, and what its launches should find, by the stream that they were asked for on."""

    def __init__(self, gpu: FakeGpu, seed: int) -> None:
        self.gpu, self.rng = gpu, np.random.default_rng(seed)
        self.attention = layer()
        self.expected: dict[int, list[Any]] = defaultdict(list)
        self.graphs: dict[int, Any] = {}  # what a replay computes; None: whatever is planned
        self.is_reserved, self.grown = False, 0
        self.plan()

    def stream(self) -> int:
        return STREAM if self.is_reserved else int(self.rng.choice(STREAMS))

    def plan(self) -> None:
        num = int(self.rng.integers(1, 9))
        q_lens = self.rng.choice([0, 1, 1, 1, 2, 30], num)
        kv_lens = self.rng.integers(0, 3000, num).astype(np.int32)
        self._plan(q_lens, kv_lens)

    def plan_decodes(self) -> None:
        """Plan such as may grow, mostly of as many requests as before."""
        changes = not len(self.kv_lens) or self.rng.random() < 0.2
        num = int(self.rng.integers(1, 5)) if changes else len(self.kv_lens)
        kv_lens = self.rng.integers(40, 2900, num).astype(np.int32)
        if self.rng.random() < 0.7:  # at the beginning of a span
            kv_lens -= kv_lens.max() % GROWTH_STEP
        self._plan(np.ones(num, np.int64), kv_lens)

    def _plan(self, q_lens: np.ndarray, kv_lens: np.ndarray) -> None:
        num, batch = len(q_lens), (np.cumsum([0, *q_lens]).astype(np.int32), kv_lens)
        table: Any = table_of(num)
        if self.rng.random() < 0.3:
            table = np.zeros((num, 188), np.int32)
        plan(self.attention, batch, block_table=table, stream=self.stream())
        self.tokens, self.table = int(q_lens.sum()), table
        self.qo_indptr, self.kv_lens = batch
        self._expect(self.attention)

    def _expect(self, attention: Any) -> None:
        self.planned, self.num_launches = attention.current_plan, len(attention.variants)

    def grow(self) -> None:
        keys = int(self.rng.integers(1, 4))
        if not self.attention.grow(keys, stream=self.stream()):
            return
        self.grown += 1
        self.kv_lens = self.kv_lens + np.int32(keys)
        twin = reserved() if self.is_reserved else layer()
        plan(twin, (self.qo_indptr, self.kv_lens), block_table=self.table)
        self._expect(twin)
        if self.rng.random() < 0.1:  # to ask for it has it planned on the host
            assert self.attention.current_plan.decode.tobytes() == self.planned.decode.tobytes()

    def run(self) -> None:
        stream = self.stream()
        rows = self.tokens + (int(self.rng.integers(0, 9)) if self.is_reserved else 0)
        self.attention.run(**tensors(rows), stream=stream)
        self.expected[stream] += [self.planned] * self.num_launches

    def fail(self) -> None:
        """Make whatever comes next run out of memory, sooner or later."""
        self.gpu.allocations_left = int(self.rng.integers(0, 3))
        before = self.planned
        try:
            getattr(self, str(self.rng.choice(["plan", "plan_decodes", "reserve"])))()
        except MemoryError:
            assert self.attention.current_plan.decode.tobytes() == before.decode.tobytes()
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
        self.is_reserved, self.tokens, self.kv_lens = True, 0, np.zeros(0, np.int32)
        self._expect(self.attention)

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


@pytest.mark.parametrize("seed", range(12))
def test_every_launch_finds_what_its_batch_has_grown_to(gpu: FakeGpu, seed: int) -> None:
    server = Server(gpu, seed)
    usual = ["plan_decodes", "grow", "grow", "run", "replay", "finish_some"]
    for turn in range(2 * TURNS):
        rare = ["plan", "fail", "release", "capture", *(["reserve"] if turn > TURNS else [])]
        calls = usual if server.rng.random() < 0.95 else rare
        getattr(server, str(server.rng.choice(calls)))()
    server.check()
    assert server.grown > 5
