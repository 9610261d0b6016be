"""The order of two streams, on stand-ins that note what is asked of them."""

from __future__ import annotations

from types import SimpleNamespace

from bench_support import make_case

from podrt.bench import contenders
from podrt.bench.case import Case
from podrt.bench.contenders import fork_and_join


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


def test_checked_rows_are_the_ends_of_the_outer_requests_of_each_side():
    case = Case("c", 4, 2, 64, "float16", 16, ((3, 33), (9, 9), (100, 120)), (16, 1, 7))
    assert case.checked_windows() == [(0, 0, 3), (2, 0, 4), (2, 96, 100), (3, 0, 1), (5, 0, 1)]
    assert make_case(prefill=(), decode=1).checked_windows() == [(0, 0, 1)]
