"""vLLM with podrt's attention backend beside FlashAttention's: whole steps of a Llama-like model.

    podrt bench serving vllm --modes EAGER,FULL --trace FILE.csv --out FILE.json

A process for each backend and mode, one engine in it for all budgets. The weights are random, so
that nothing needs to be fetched; the default shape is that of Llama 3 8B. After a run to warm up,
each budget has one that is timed, and one under the profiler.

Modes: ``EAGER``; ``FULL`` (graphs of whole steps up to the largest budget, no torch.compile);
``BREAKABLE`` (the same sizes, graphs that are broken at attention, full ones for decodes);
``FULL_AND_PIECEWISE`` (vLLM's default, with torch.compile and graphs of up to 512 tokens).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from podrt.bench.serving.document import save
from podrt.bench.serving.requests import BATCH_FORMAT, parse_batch, prompts_of, requests_of
from podrt.bench.serving.run import agreement
from podrt.bench.serving.vllm_clocks import gpu_times, host_times
from podrt.bench.serving.vllm_engine import MODES, make_engine
from podrt.bench.serving.vllm_steps import serve

_MODULE = "podrt.bench.serving.vllm"
_RESULT = "RESULT "


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what a command line asks for, this process's by default, and print the results."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    if options.child:
        measure(options)
        return
    results: list[dict[str, Any]] = []
    for mode in options.modes.split(","):
        for backend in options.backends.split(","):
            results += _in_a_process(arguments, options.runner, backend, mode)
            if options.out:
                save(
                    results,
                    options.out,
                    command=shlex.join(["podrt", "bench", "serving", "vllm", *arguments]),
                    packages=("vllm", "torch", "numpy"),
                    comparisons=comparisons(results),
                )
    for line in comparisons(results):
        print(line)


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser("podrt bench serving vllm", description=about)
    add = parser.add_argument
    add("--backends", default="FLASH_ATTN,PODRT", help="names in vLLM's registry")
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
    add("--tensor-parallel", type=int, default=1, help="GPUs")
    add("--trace", help="CSV file of request lengths; podrt's sample without it")
    add("--requests", type=int, default=24, help="of the trace, from its beginning; 0: none")
    add("--most-output", type=int, default=256, help="tokens generated for a request")
    add("--rate", type=float, default=0.0, help="requests a second; 0: all at the beginning")
    add("--sequences", type=int, default=64, help="most requests at once")
    add("--decode", default="", help=f"{BATCH_FORMAT}: time steps of decodes alone too")
    add("--drafts", type=int, default=0, help="tokens that n-grams draft; try --vocabulary 128")
    add("--no-profile", action="store_true")
    add("--split-write", action="store_true", help="PODRT: cache writes as operators of their own")
    add("--policy", default="auto", help="PODRT: podrt's policy")
    add("--cache-gib", type=float, default=42.0, help="of keys and values")
    add("--out", type=Path, help="JSON file for the results")
    add("--child", help=argparse.SUPPRESS)
    return parser


def _in_a_process(
    arguments: Sequence[str], runner: int, backend: str, mode: str
) -> list[dict[str, Any]]:
    """Measure a backend in a mode; an engine that fails is a result too."""
    env = dict(os.environ) | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": str(runner - 1),
        "VLLM_USE_BREAKABLE_CUDAGRAPH": str(int(mode == "BREAKABLE")),
    }
    command = [sys.executable, "-m", _MODULE, *arguments, "--child", f"{backend}:{mode}"]
    began_s = time.perf_counter()
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    results = [json.loads(line.removeprefix(_RESULT)) for line in lines]
    if done.returncode and not results:
        results = [{"backend": backend, "mode": mode, "error": done.stdout[-2000:]}]
    for result in results:
        print(f"[{time.perf_counter() - began_s:.0f} s]", json.dumps(_without_tokens(result)))
    return results


def _without_tokens(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "tokens"}


def measure(options: argparse.Namespace) -> None:
    """Measure one backend in one mode, in this process; print a line for each budget."""
    backend, mode = options.child.split(":")
    budgets = [int(budget) for budget in options.budgets.split(",")]
    requests = requests_of(options.trace, options.requests)
    longest = max([r.prompt_tokens + options.most_output for r in requests], default=1)
    if options.decode:
        longest = max(longest, sum(parse_batch(options.decode)[1:]))
    began_s = time.perf_counter()
    engine = make_engine(options, backend, mode, max(budgets), longest)
    about = {
        "backend": backend,
        "mode": mode,
        "runner": options.runner,
        "ready_s": time.perf_counter() - began_s,
    }
    prompts = prompts_of([request.prompt_tokens for request in requests], options.vocabulary)
    lengths = [max(1, min(request.output_tokens, options.most_output)) for request in requests]
    for budget in budgets:
        _set_budget(engine, budget)
        row: dict[str, Any] = {**about, "budget": budget}
        if requests:
            if budget == budgets[0]:
                serve(engine, prompts, lengths)
            with host_times(backend) as host:
                run = serve(engine, prompts, lengths, options.rate)
            row |= run.summary() | {"tokens": run.tokens}
            if options.tensor_parallel == 1:  # else layers run in other processes
                row |= host
                if not options.no_profile:
                    with gpu_times() as kernels:
                        serve(engine, prompts, lengths)
                    row |= kernels
        if options.decode and budget == budgets[-1]:
            row |= _decode_speed(engine, options)
        row["podrt"] = _status(engine, backend)
        print(_RESULT + json.dumps(row), flush=True)


def _set_budget(engine: Any, budget: int) -> None:
    """Have the scheduler fill steps with fewer tokens than the engine was made for."""
    engine.llm_engine.engine_core.engine_core.scheduler.max_num_scheduled_tokens = budget


def _decode_speed(engine: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Time the steps in which all requests decode: after the last began, before the first ends."""
    count, prompt, output = parse_batch(options.decode)
    run = serve(engine, prompts_of([prompt] * count, options.vocabulary), [output] * count)
    begin_s = max(times[0] for times in run.times_s)
    end_s = min(times[-1] for times in run.times_s)
    inside = sum(begin_s < t <= end_s for times in run.times_s for t in times)
    return {"decode_tokens_per_s": inside / (end_s - begin_s), "decode": options.decode}


def _status(engine: Any, backend: str) -> Any:
    if backend != "PODRT":
        return None
    from podrt.integrations.vllm import status

    return engine.collective_rpc(status)


def comparisons(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines that set the last backend against the first, mode by mode."""
    lines = []
    by_key = {(r["mode"], r.get("budget"), r["backend"]): r for r in results if "error" not in r}
    backends = list(dict.fromkeys(result["backend"] for result in results))
    for mode, budget in dict.fromkeys((mode, budget) for mode, budget, _ in by_key):
        pair = [by_key.get((mode, budget, backend)) for backend in (backends[0], backends[-1])]
        if None in pair or len(backends) < 2:
            continue
        old, new = (row or {} for row in pair)
        parts = [f"{mode} budget {budget}: {backends[-1]} against {backends[0]}"]
        for name, label, faster in (
            ("all_tokens_per_s", "tokens/s", True),
            ("decode_tokens_per_s", "decode tokens/s", True),
            ("gpu_attention_ms", "GPU time in attention", False),
            ("tbt_p99_ms", "TBT P99", False),
        ):
            if name in old and name in new and old[name] and new[name]:
                ratio = new[name] / old[name] if faster else old[name] / new[name]
                parts.append(f"{label} {ratio:.3f}x")
        if "tokens" in old and "tokens" in new:
            parts.append(agreement(old["tokens"], new["tokens"]))
        lines.append(", ".join(parts))
    return lines


if __name__ == "__main__":
    main()
