"""The order of two streams, on stand-ins that note what is asked of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from bench_support import make_case

from podrt.bench import contenders
from podrt.bench.accuracy import windows_of
from podrt.bench.case import Case
from podrt.bench.contenders import fork_and_join
from podrt.bench.tensors import shuffled_pages


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def record(self, event):
        self.log.append(f"{self.name} records {event}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")

    def __enter__(self):
        self.log.append(f"enter {self.name}")

    def __exit__(self, *_):
        self.log.append(f"leave {self.name}")


def test_two_streams_start_together_and_join(monkeypatch):
    log = []
    current, side = Stream("current", log), Stream("side", log)
    cupy = SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: current))
    monkeypatch.setattr(contenders, "load_cupy", lambda: cupy)
    enqueue = fork_and_join(side, "fork", "join")
    enqueue(lambda: log.append("prefill"), lambda: log.append("decode"))
    assert log == [
        *("current records fork", "side waits for fork"),
        *("enter side", "decode", "side records join", "leave side"),
        *("prefill", "current waits for join"),
    ]


def test_pages_are_shuffled_and_owned_once():
    case = Case("c", 4, 2, 64, "float16", 16, ((3, 33),), (16, 1))
    table, num_pages = shuffled_pages(case, np.random.default_rng(0))
    assert num_pages == 3 + 1 + 1
    assert table.shape == (3, 3)
    owned = [*table[0, :3], table[1, 0], table[2, 0]]
    assert sorted(owned) == list(range(5))
    assert shuffled_pages(make_contiguous(), np.random.default_rng(0)) == (None, 0)


def make_contiguous():
    return Case("c", 4, 2, 64, "float16", None, ((3, 33),), ())


def test_checked_rows_are_the_ends_of_the_outer_requests_of_each_side():
    case = Case("c", 4, 2, 64, "float16", 16, ((3, 33), (9, 9), (100, 120)), (16, 1, 7))
    assert windows_of(case) == [(0, 0, 3), (2, 0, 4), (2, 96, 100), (3, 0, 1), (5, 0, 1)]
    assert windows_of(make_case(prefill=(), decode=1)) == [(0, 0, 1)]
