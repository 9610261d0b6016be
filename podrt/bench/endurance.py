"""Serve a trace for thousands of steps, as an engine would: ``python -m podrt.bench.endurance``.

Eager calls and replays of three captured sizes in random turns, an object on each of two streams;
some steps are checked against float64, and device and host memory must stay flat.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from podrt.bench.environment import gpu_slug
from podrt.bench.flatness import MemorySample, growth_bytes, not_flat, sample_memory
from podrt.bench.host import host_environment
from podrt.bench.results import write_whole
from podrt.bench.serving_lane import (
    DTYPE,
    HEAD_DIM,
    HEADS,
    MAX_KV_LEN,
    MAX_REQUESTS,
    PAGE_SIZE,
    SIZES,
    ServingLane,
)
from podrt.gpu.device import current_device, load_cupy
from podrt.tensors.view import numpy_dtype
from podrt.workloads.accuracy import tolerance_of
from podrt.workloads.chunked_prefill import HybridStep, schedule
from podrt.workloads.traces import Request, read_trace, sample_trace

STEPS = 20_000
CHECK_EVERY = 500
LANES = 2
#: Pages of the cache, which all requests draw from: 0.27 GB each of keys and values.
NUM_PAGES = 1 << 15
#: Steps that may be in flight on a stream.
_IN_FLIGHT = 8
#: Requests that the server takes in before it is idle and gets another token budget.
_PASS_REQUESTS = 60


@dataclass
class Record:
    """What a run has seen.

    Attributes
    ----------
    steps : int
        Steps that were served.
    turns : Counter
        How often each kind of call was made.
    checks : list of dict
        ``{"step", "lane", "call", "requests", "tokens", "max_rel_err"}``.
    memory : list of MemorySample
    """

    steps: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    checks: list[dict[str, Any]] = field(default_factory=list)
    memory: list[MemorySample] = field(default_factory=list)

    def failures(self) -> list[str]:
        """Return what went wrong: checks off by too much, memory that grew."""
        allowed = tolerance_of(DTYPE)
        wrong = [
            f"step {check['step']}, {check['call']}: off by {check['max_rel_err']:.2e}, "
            f"allowed is {allowed:.2e}"
            for check in self.checks
            if not check["max_rel_err"] <= allowed
        ]
        return wrong + not_flat(growth_bytes(self.memory))


def trace_steps(requests: Sequence[Request]) -> Iterator[HybridStep]:
    """Yield the steps of a saturated server for ever: a part of the trace after the other.

    Each part has a token budget of its own, just what one of the graphs holds. Requests that would
    grow beyond `MAX_KV_LEN` are left out.
    """
    waiting = [replace(each, arrival_s=0.0) for each in requests if each.kv_tokens <= MAX_KV_LEN]
    if not waiting:
        raise ValueError(f"trace: every request grows beyond {MAX_KV_LEN} tokens; take another")
    for turn in count():
        budget = SIZES[turn % len(SIZES)]
        begin = turn * _PASS_REQUESTS % len(waiting)
        batch = waiting[begin : begin + _PASS_REQUESTS]
        yield from schedule(batch, budget, max_batch_size=MAX_REQUESTS)


def serve(
    steps: Iterator[HybridStep],
    lanes: Sequence[ServingLane],
    num_steps: int,
    rng: np.random.Generator,
    *,
    check_every: int = CHECK_EVERY,
    deadline_s: float | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Record:
    """Serve `num_steps` steps, or until ``time.monotonic()`` reaches `deadline_s`."""
    record = Record()
    while record.steps < num_steps and (deadline_s is None or time.monotonic() < deadline_s):
        step, number = next(steps), int(rng.integers(len(lanes)))
        record.steps += 1
        checked = record.steps % check_every == 0
        lane = lanes[number]
        if checked:
            lane.poison()
        lane.plan(step)
        call, out = _turn(lane, step, rng)
        record.turns[f"lane {number}: {call}"] += 1
        if checked:
            record.checks.append(
                {
                    "step": record.steps,
                    "lane": number,
                    "call": call,
                    "requests": len(step.q_lens),
                    "tokens": step.total_tokens,
                    "max_rel_err": lane.error_of(step, out),
                }
            )
        del out
        if checked:
            for each in lanes:
                each.stream.synchronize()
            record.memory.append(sample_memory(record.steps))
        elif record.steps % _IN_FLIGHT == 0:
            lane.stream.synchronize()
        on_step()
    return record


def _turn(lane: ServingLane, step: HybridStep, rng: np.random.Generator) -> tuple[str, Any]:
    """Make one of the calls that can serve the step, at random."""
    sizes = [size for size in SIZES if size >= step.total_tokens]
    chosen = int(rng.integers(len(sizes) + 2))
    if chosen < len(sizes):
        return f"replay {sizes[chosen]}", lane.replay(sizes[chosen])
    with_out = chosen == len(sizes)
    name = "run out=" if with_out else "run no out"
    return name, lane.run(step.total_tokens, with_out=with_out)


def make_lanes(seed: int) -> list[ServingLane]:
    """Return the lanes, over one random cache."""
    cupy = load_cupy()
    shape = (NUM_PAGES, PAGE_SIZE, HEADS[1], HEAD_DIM)
    random = cupy.random.RandomState(seed)
    caches = tuple(
        (random.standard_normal(shape, dtype="float32").view("uint32") >> 16)
        .astype("uint16")
        .view(numpy_dtype(DTYPE))
        for _ in "kv"
    )
    cupy.cuda.Device().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()
    return [
        ServingLane((caches[0], caches[1]), np.random.default_rng([seed, lane]))
        for lane in range(LANES)
    ]


def main(
    steps: Annotated[int, typer.Option(min=1)] = STEPS,
    limit_s: Annotated[float | None, typer.Option(min=0, help="Start no step after that.")] = None,
    trace: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="CSV; a sample if left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Default: bench/results/GPU/endurance.json.")
    ] = None,
    check_every: Annotated[int, typer.Option(min=1)] = CHECK_EVERY,
    seed: int = 0,
) -> None:
    """Serve a trace; exit code 1 if a result was wrong or memory grew, 3 at the time limit."""
    device = current_device()
    deadline_s = None if limit_s is None else time.monotonic() + limit_s
    requests = sample_trace() if trace is None else read_trace(trace)
    begin_s = time.monotonic()
    lanes = make_lanes(seed)
    record = serve(
        trace_steps(requests),
        lanes,
        steps,
        np.random.default_rng(seed),
        check_every=check_every,
        deadline_s=deadline_s,
    )
    command = shlex.join(["python", "-m", "podrt.bench.endurance", *sys.argv[1:]])
    header = {
        "environment": {**host_environment(device), "command": command},
        "trace": "sample" if trace is None else trace.name,
        "seconds": round(time.monotonic() - begin_s, 1),
    }
    failures = record.failures()
    path = out or Path("bench") / "results" / gpu_slug(device.name) / "endurance.json"
    write_whole(dumps(record, header, failures), path)
    for line in summary_lines(record, failures):
        typer.echo(line)
    typer.echo(f"Saved to {path}.")
    raise typer.Exit(1 if failures else 3 if record.steps < steps else 0)


def dumps(record: Record, header: dict[str, Any], failures: Sequence[str]) -> str:
    """Return the text of the results file."""
    data = {
        **header,
        "steps": record.steps,
        "turns": dict(sorted(record.turns.items())),
        "growth_bytes": growth_bytes(record.memory),
        "failures": list(failures),
        "checks": record.checks,
        "memory": [asdict(sample) for sample in record.memory],
    }
    return json.dumps(data, indent=1) + "\n"


def summary_lines(record: Record, failures: Sequence[str]) -> list[str]:
    """Return what to print in the end."""
    errors = [check["max_rel_err"] for check in record.checks] or [np.nan]
    growth = growth_bytes(record.memory)
    grown = ", ".join(f"{name} {size / 2**20:+.1f} MiB" for name, size in growth.items())
    return [
        f"{record.steps} steps, {len(record.checks)} checked, largest error {np.max(errors):.2e}",
        *(f"{call}: {times}" for call, times in sorted(record.turns.items())),
        f"growth: {grown}",
        *(failures or ["all right, and flat"]),
    ]


if __name__ == "__main__":
    typer.run(main)
