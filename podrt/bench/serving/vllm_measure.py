"""One backend in one mode, measured in this process."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from podrt.bench.serving.gpu_clock import gpu_times
from podrt.bench.serving.requests import (
    Batch,
    Load,
    load_of,
    parse_batch,
    parse_numbers,
    parse_rates,
    prompts_of,
    requests_of_traces,
)
from podrt.bench.serving.vllm_clocks import host_times
from podrt.bench.serving.vllm_engine import make_engine
from podrt.bench.serving.vllm_steps import serve

#: What a line of results begins with.
RESULT = "RESULT "
#: Requests a second that the first backend serves, by trace and budget.
Capacities = dict[str, float]


def measure(options: argparse.Namespace) -> None:
    """Measure what `options.child` names; print a line for each budget, trace and rate."""
    backend, mode, gpus = options.child.split(":")
    budgets = parse_numbers("--budgets", options.budgets)
    loads = _loads(options)
    longest = max((load.longest for load in loads), default=1)
    if options.decode:
        longest = max(longest, sum(parse_batch("--decode", options.decode)[1:]))
    began_s = time.perf_counter()
    engine = make_engine(options, backend, mode, int(gpus), max(budgets), longest)
    about = {
        "backend": name_of(backend, options.policy),
        "mode": mode,
        "runner": options.runner,
        "gpus": int(gpus),
        "ready_s": time.perf_counter() - began_s,
    }
    if loads:
        load = loads[0]
        serve(engine, *load.first(options.warm_up or len(load.prompts))[1:])
    for budget in budgets:
        _set_budget(engine, budget)
        for load in loads:
            _measure_load(engine, options, load, {**about, "budget": budget})
    if options.decode:
        row = {**about, "budget": budgets[-1], **_decode_speed(engine, options, budgets[-1])}
        print(RESULT + json.dumps(row), flush=True)


def name_of(backend: str, policy: str) -> str:
    """Return how a backend is called in results, the policy of podrt's included."""
    return backend if policy == "auto" else f"{backend}/{policy}"


def capacity_key(row: dict[str, Any]) -> str:
    """Return what a row's capacity is kept by."""
    return f"{row['trace']} {row['budget']}"


def _measure_load(
    engine: Any, options: argparse.Namespace, load: Load, about: dict[str, Any]
) -> None:
    """Serve a trace at every rate; print a line for each."""
    backend, gpus = options.child.split(":")[0], about["gpus"]
    capacities: Capacities = json.loads(options.capacities)
    for rate in parse_rates(options.rates):
        row = {**about, "trace": load.name, "requests": len(load.prompts)}
        key = capacity_key(row)
        row["rate"] = rate.of(capacities.get(key))
        if rate.is_share:
            row["share_of_capacity"] = rate.value
        with host_times(backend) as host:
            run = serve(engine, load.prompts, load.lengths, row["rate"], margins=options.margins)
        row |= run.summary() | {"tokens": run.tokens, "margins": run.margins}
        if not row["rate"]:
            capacities.setdefault(key, row["requests_per_min"] / 60)
        if gpus == 1:  # else layers run in other processes
            row |= host
            if not (options.no_profile or row["rate"]):
                with gpu_times() as kernels:
                    serve(engine, load.prompts, load.lengths)
                row |= kernels
        row["podrt"] = _status(engine, backend)
        print(RESULT + json.dumps(row), flush=True)


def _loads(options: argparse.Namespace) -> list[Load]:
    """Return what is served of each trace."""
    traces = options.trace or [None]
    return [
        load_of(trace, count, options.most_output, options.vocabulary)
        for trace, count in zip(traces, requests_of_traces(options.requests, traces), strict=True)
        if count
    ]


def _set_budget(engine: Any, budget: int) -> None:
    """Have the scheduler fill steps with fewer tokens than the engine was made for."""
    engine.llm_engine.engine_core.engine_core.scheduler.max_num_scheduled_tokens = budget


def _decode_speed(engine: Any, options: argparse.Namespace, budget: int) -> dict[str, Any]:
    """Time the steps in which all requests decode: after the last began, before the first ends.

    Where there are no such steps the row has an error, and no speed.
    """
    batch = parse_batch("--decode", options.decode)
    prompts = prompts_of([batch.prompt_tokens] * batch.requests, options.vocabulary)
    run = serve(engine, prompts, [batch.new_tokens] * batch.requests)
    begin_s = max(times[0] for times in run.times_s)
    end_s = min(times[-1] for times in run.times_s)
    if end_s <= begin_s:
        return {"decode": options.decode, "error": _never_together(options, batch, budget)}
    inside = sum(begin_s < t <= end_s for times in run.times_s for t in times)
    return {"decode_tokens_per_s": inside / (end_s - begin_s), "decode": options.decode}


def _never_together(options: argparse.Namespace, batch: Batch, budget: int) -> str:
    """Say why no step had all requests decode, and what would mend that."""
    needed = None
    if batch.requests <= options.sequences:
        needed = _output_needed(batch, budget, 1 + options.drafts)
    said = f"--decode {options.decode}: the first request ends before the last begins"
    if needed is None or needed <= batch.new_tokens:  # more output would not help
        return (
            f"{said}, as the engine does not hold all at once; decode fewer, or raise "
            f"--sequences {options.sequences}, --budgets {budget} or --cache-gib "
            f"{options.cache_gib:g}"
        )
    return (
        f"{said}; with steps of {budget} tokens at least {needed} output tokens are needed: pass "
        f"--decode {batch.requests}x{batch.prompt_tokens}+{needed} or more"
    )


def _output_needed(batch: Batch, budget: int, tokens_a_step: int) -> int | None:
    """Return the least output with which the first request decodes beside the last; None: never.

    Every step takes the tokens of those that decode, and prompts in turn for the rest of it; a step
    that ends a prompt gives its first output token.
    """
    done, steps = 0, 0
    while done < batch.requests * batch.prompt_tokens:
        room = budget - tokens_a_step * (done // batch.prompt_tokens)
        if room <= 0:
            return None
        done += room
        steps += done >= batch.prompt_tokens
    return tokens_a_step * steps + 1


def _status(engine: Any, backend: str) -> Any:
    if backend != "PODRT":
        return None
    from podrt.integrations.vllm import status

    return engine.collective_rpc(status)
