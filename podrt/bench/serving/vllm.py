"""vLLM with podrt's attention backend beside FlashAttention's: whole steps of a Llama-like model.

    podrt bench serving vllm --modes EAGER,FULL --trace FILE.csv --out FILE.json

A process for each backend and mode, one engine in it for all budgets, traces and rates. The
weights are random, so that nothing needs to be fetched; the default shape is that of Llama 3 8B.
After a run to warm up, each has one that is timed, and one under the profiler where all requests
are there at the beginning. At a rate they come as a Poisson process has them, the same for all
backends.

Modes: ``EAGER``; ``FULL`` (graphs of whole steps up to the largest budget, no torch.compile);
``BREAKABLE`` (the same sizes, graphs that are broken at attention, full ones for decodes);
``FULL_AND_PIECEWISE`` (vLLM's default, with torch.compile and graphs of up to 512 tokens).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from podrt.bench.serving.document import Journal
from podrt.bench.serving.progress import rows_bar
from podrt.bench.serving.requests import (
    BATCH_FORMAT,
    parse_batch,
    parse_names,
    parse_numbers,
    parse_rates,
    requests_of,
    requests_of_traces,
)
from podrt.bench.serving.vllm_compare import Row, comparisons
from podrt.bench.serving.vllm_engine import MODES
from podrt.bench.serving.vllm_measure import RESULT, capacity_key, measure, name_of
from podrt.workloads.lengths import parse_heads

_MODULE = "podrt.bench.serving.vllm"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what a command line asks for, this process's by default, and print the results."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    if options.child:
        measure(options)
        return
    # All is read before any engine starts, which takes minutes.
    rows_each = _rows_of_an_engine(options)
    modes = parse_names("--modes", options.modes, MODES)
    gpus = parse_numbers("--tensor-parallel", options.tensor_parallel)
    engines = list(product(modes, gpus, options.backends.split(",")))
    packages = ("vllm", "torch", "numpy")
    journal = Journal("vllm", arguments, options.out, packages=packages, compare=comparisons)
    with rows_bar(len(engines) * rows_each) as bar:
        for number, (mode, count, backend) in enumerate(engines):
            bar.show(f"{backend}, {mode}, {count} GPU{'s' * (count != 1)}")
            first = _rows_of_the_first(journal.rows, mode, count)
            rows = _in_a_process(arguments, options, f"{backend}:{mode}:{count}", first)
            for done, row in enumerate(rows, start=1):
                journal.add(row)
                bar.reach(number * rows_each + done)
            bar.reach((number + 1) * rows_each)
    journal.close()


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser("podrt bench serving vllm", description=about)
    add = parser.add_argument
    backends = "names in vLLM's registry, the baseline first; PODRT/POLICY has one of podrt's"
    add("--backends", default="FLASH_ATTN,PODRT", help=backends)
    add("--modes", default=",".join(MODES), help="of " + ", ".join(MODES))
    add("--budgets", default="512,1024,2048", help="tokens of a step")
    add("--runner", type=int, default=2, choices=(1, 2), help="vLLM's model runner")
    add("--layers", type=int, default=32)
    add("--hidden", type=int, default=4096)
    add("--heads", default="32/8", help="query and KV heads")
    add("--head-dim", type=int, default=128)
    add("--vocabulary", type=int, default=128256)
    add("--dtype", default="bfloat16")
    add("--block-size", type=int, default=16)
    add("--tensor-parallel", default="1", help="numbers of GPUs, such as 1,2")
    traces = "CSV file of request lengths, repeatable; podrt's sample without it"
    add("--trace", action="append", help=traces)
    add(
        "--requests", default="24", help="of each trace, such as 16,48, from its beginning; 0: none"
    )
    add("--most-output", type=int, default=256, help="tokens generated for a request")
    rates = "requests a second; 0: all at the beginning; 70%%: of what the first backend serves so"
    add("--rates", default="0", help=rates)
    add("--warm-up", type=int, default=0, help="requests to warm up with; 0: all of a trace")
    add("--sequences", type=int, default=64, help="most requests at once")
    add("--decode", default="", help=f"{BATCH_FORMAT}: time steps of decodes alone too")
    add("--drafts", type=int, default=0, help="tokens that n-grams draft; try --vocabulary 128")
    add("--no-profile", action="store_true")
    add("--margins", action="store_true", help="say how close the scores are where tokens differ")
    add("--split-write", action="store_true", help="PODRT: cache writes as operators of their own")
    add("--policy", default="auto", help="PODRT: podrt's policy")
    add("--cache-gib", type=float, default=42.0, help="of keys and values")
    add("--out", type=Path, help="JSON file for the results")
    add("--child", help=argparse.SUPPRESS)
    add("--capacities", default="{}", help=argparse.SUPPRESS)
    return parser


def _rows_of_an_engine(options: argparse.Namespace) -> int:
    """Return how many rows a backend in a mode has, if it does not fail.

    Raises
    ------
    ValueError
        An option makes no sense, a trace cannot be read, or there is nothing to measure.
    """
    parse_heads(options.heads)
    traces = options.trace or [None]
    counts = requests_of_traces(options.requests, traces)
    for trace in traces:
        requests_of(trace, 0)
    if options.decode:
        parse_batch("--decode", options.decode)
    budgets, rates = parse_numbers("--budgets", options.budgets), parse_rates(options.rates)
    found = len(budgets) * sum(map(bool, counts)) * len(rates) + bool(options.decode)
    if not found:
        raise ValueError(
            f"--requests {options.requests}: leaves nothing to measure; serve some, or pass "
            "--decode"
        )
    return found


def _rows_of_the_first(results: Sequence[Row], mode: str, gpus: int) -> list[Row]:
    """Return what the first backend that ran in a mode did, on so many GPUs."""
    ran = [row for row in results if "error" not in row]
    alike = [row for row in ran if (row["mode"], row.get("gpus")) == (mode, gpus)]
    return [row for row in alike if row["backend"] == alike[0]["backend"]]


def _in_a_process(
    arguments: Sequence[str], options: argparse.Namespace, child: str, first: Sequence[Row]
) -> Iterator[Row]:
    """Measure a backend in a mode, row by row; an engine that fails is a result too."""
    name, mode, gpus = child.split(":")
    backend, _, policy = name.partition("/")
    policy = policy or (options.policy if backend == "PODRT" else "auto")
    capacities = {
        capacity_key(row): row["requests_per_min"] / 60
        for row in first
        if not row.get("rate") and "requests_per_min" in row
    }
    command = [
        *(sys.executable, "-m", _MODULE, *arguments, "--policy", policy),
        *("--child", f"{backend}:{mode}:{gpus}", "--capacities", json.dumps(capacities)),
    ]
    env = dict(os.environ) | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": str(options.runner - 1),
        "VLLM_USE_BREAKABLE_CUDAGRAPH": str(int(mode == "BREAKABLE")),
    }
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        others = deque[str](maxlen=20)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(RESULT):
                yield json.loads(line.removeprefix(RESULT))
            else:
                others.append(line)
    if process.returncode:
        failed = {"backend": name_of(backend, policy), "mode": mode, "gpus": int(gpus)}
        yield {**failed, "error": f"exit code {process.returncode}: {''.join(others)}"}


if __name__ == "__main__":
    main()
