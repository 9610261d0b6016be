"""What attention of a whole trace is predicted to take, under one policy and another; no GPU.

    podrt bench serving predict --trace FILE.csv --requests 36 --budgets 1024 --policies auto,serial

All requests are there at the beginning; steps are those of chunked prefill, decodes first, as vLLM
schedules them. Every step is planned as an engine's graphs run it, and priced by the cost model
(`design/cost-model.md`), which the Hopper family alone has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from podrt.bench.results import write_whole
from podrt.bench.serving.requests import (
    name_of_trace,
    new_tokens,
    parse_number,
    parse_numbers,
    requests_of,
)
from podrt.gpu.nominal import GPUS
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler
from podrt.spec.attention import make_spec
from podrt.spec.batch import HybridBatch
from podrt.workloads.chunked_prefill import schedule
from podrt.workloads.lengths import batch_of_lengths, parse_heads, parse_page_size
from podrt.workloads.traces import Request

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict what a command line asks for, this process's by default, and print it."""
    options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    rows = list(predict(options))
    for row in rows:
        print(line_of(row))
    if options.out:
        write_whole(json.dumps(rows, indent=1) + "\n", options.out)


def predict(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each budget: steps, and milliseconds of attention by policy.

    Raises
    ------
    ValueError
        An option makes no sense, or a policy has no predictions.
    """
    heads = parse_heads(options.heads)
    page_size = parse_page_size(options.page_size)
    spec = make_spec(*heads, options.head_dim, page_size, "NHD", options.dtype)
    schedulers = {
        name: Scheduler(spec, GPUS[options.gpu], parse_policy(name))
        for name in options.policies.split(",")
    }
    count = parse_number("--requests", options.requests)
    layers = parse_number("--layers", options.layers)
    most_output = parse_number("--most-output", options.most_output)
    requests = _all_at_once(requests_of(options.trace, count), most_output)
    if not requests:
        raise ValueError(f"--trace {options.trace}: has no requests; pass one that has")
    sequences = parse_number("--sequences", options.sequences)
    cache_tokens = parse_number("--cache-tokens", options.cache_tokens)
    for budget in parse_numbers("--budgets", options.budgets):
        limits = {"max_batch_size": sequences, "max_kv_tokens": cache_tokens}
        steps = list(schedule(requests, budget, **limits))
        batches = [batch_of_lengths(step.lengths, page_size) for step in steps]
        yield {
            "trace": name_of_trace(options.trace),
            "requests": len(requests),
            "budget": budget,
            "steps": len(steps),
            "hybrid_steps": sum(step.is_hybrid for step in steps),
            "attention_ms": {
                name: layers * _attention_us(scheduler, name, batches) / 1e3
                for name, scheduler in schedulers.items()
            },
        }


def line_of(row: Row) -> str:
    """Return a row in words."""
    times_ms = row["attention_ms"]
    first, *others = times_ms
    parts = [f"{first} {times_ms[first]:.0f} ms"]
    parts += [
        f"{name} {times_ms[name]:.0f} ({times_ms[name] / times_ms[first]:.3f}x)" for name in others
    ]
    return (
        f"{row['trace']}, {row['requests']} requests, {row['budget']} tokens a step: "
        f"{row['steps']} steps, {row['hybrid_steps']} of them hybrid; attention " + ", ".join(parts)
    )


def _all_at_once(requests: Sequence[Request], most_output: int) -> list[Request]:
    return [Request(0.0, each.prompt_tokens, new_tokens(each, most_output)) for each in requests]


def _attention_us(scheduler: Scheduler, policy: str, batches: Sequence[HybridBatch]) -> float:
    """Return what one layer's launches of all steps take together."""
    total_us, decode_rows = 0.0, scheduler.decode_rows_for(1)
    for batch in batches:
        launches = scheduler.predict(scheduler.schedule(batch, decode_rows=decode_rows))
        if not launches:
            raise ValueError(
                f"--policies {policy}: kernels of the family {scheduler.family} have no "
                "predictions; leave it out"
            )
        total_us += sum(launch.time_us for launch in launches)
    return total_us


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser("podrt bench serving predict", description=about)
    add = parser.add_argument
    add("--trace", help="CSV file of request lengths; podrt's sample without it")
    add("--requests", default="24", help="of the trace, from its beginning")
    add("--budgets", default="512,1024,2048", help="tokens of a step")
    add("--policies", default="auto,serial", help="as of podrt.HybridAttention")
    add("--gpu", default="h100", choices=tuple(GPUS))
    add("--layers", default="32")
    add("--heads", default="32/8", help="query and KV heads")
    add("--head-dim", type=int, default=128)
    add("--page-size", default="16", help="tokens of a page; none or 0: a contiguous cache")
    add("--dtype", default="bfloat16")
    add("--most-output", default="256", help="tokens generated for a request")
    add("--sequences", default="64", help="most requests at once")
    add("--cache-tokens", default="344064", help="room of the KV cache")
    add("--out", type=Path, help="JSON file for the results")
    return parser


if __name__ == "__main__":
    main()
