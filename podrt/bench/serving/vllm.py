"""vLLM with podrt's attention backend beside FlashAttention's: whole steps of a Llama-like model.

    python -m podrt.bench.serving.vllm --modes EAGER,FULL --trace FILE.csv --out FILE.json

A process for each backend and mode, one engine in it for all budgets. The weights are random, so
that nothing needs to be fetched; the default shape is that of Llama 3 8B. Each budget is run twice,
the first time to warm up; then once more with host times taken, and once more under the profiler.

Modes: ``EAGER``; ``FULL`` (graphs of whole steps up to the largest budget, no torch.compile);
``BREAKABLE`` (the same sizes, graphs that are broken at attention, full ones for decodes);
``FULL_AND_PIECEWISE`` (vLLM's default, with torch.compile and graphs of up to 512 tokens).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from podrt.workloads.traces import Request, read_trace, sample_trace

MODES = ("EAGER", "FULL", "BREAKABLE", "FULL_AND_PIECEWISE")
#: Padded numbers of tokens of FULL and BREAKABLE, as far as the largest budget.
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_ATTENTION = re.compile(r"^(pod|prefill|decode)_(hopper|portable)_|flash|unified_attention", re.I)
_HELPERS = re.compile(r"prepare_varlen|combine|reduce_segments", re.I)
_WRITES = re.compile(r"cache_write|reshape_and_cache", re.I)
_RESULT = "RESULT "


def main() -> None:
    """Run what the command line asks for, and write and print the results."""
    options = _parser().parse_args()
    if options.child:
        measure(options)
        return
    results: list[dict[str, Any]] = []
    for mode in options.modes.split(","):
        for backend in options.backends.split(","):
            results += _in_a_process(options, backend, mode)
            if options.out:
                document = {"arguments": vars(options), "results": results}
                Path(options.out).write_text(json.dumps(document, indent=1))
    for line in comparisons(results):
        print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
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
    add("--requests", type=int, default=16, help="of the trace, from its beginning; 0: none")
    add("--most-output", type=int, default=128, help="tokens generated for a request")
    add("--rate", type=float, default=0.0, help="requests a second; 0: all at the beginning")
    add("--sequences", type=int, default=64, help="most requests at once")
    add("--decode", default="", help="REQUESTSxPROMPT+OUTPUT: time steps of decodes alone too")
    add("--no-profile", action="store_true")
    add("--split-write", action="store_true", help="PODRT: cache writes as operators of their own")
    add("--policy", default="auto", help="PODRT: podrt's policy")
    add("--cache-gib", type=float, default=24.0, help="of keys and values")
    add("--out", help="JSON file for the results")
    add("--child", help=argparse.SUPPRESS)
    return parser


def _in_a_process(options: argparse.Namespace, backend: str, mode: str) -> list[dict[str, Any]]:
    """Measure a backend in a mode; an engine that fails is a result too."""
    env = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": str(options.runner - 1),
        "VLLM_USE_BREAKABLE_CUDAGRAPH": str(int(mode == "BREAKABLE")),
    }
    command = [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--child", f"{backend}:{mode}"]
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
    requests = _requests(options)
    began_s = time.perf_counter()
    _announce_plugin()
    engine = _engine(options, backend, mode, max(budgets), requests)
    about = {
        "backend": backend,
        "mode": mode,
        "runner": options.runner,
        "ready_s": time.perf_counter() - began_s,
    }
    prompts = _prompts([request.prompt_tokens for request in requests], options.vocabulary)
    lengths = [max(1, min(request.output_tokens, options.most_output)) for request in requests]
    for budget in budgets:
        _set_budget(engine, budget)
        row: dict[str, Any] = {**about, "budget": budget}
        if requests:
            serve(engine, prompts, lengths, options.rate)
            run = serve(engine, prompts, lengths, options.rate)
            row |= run.summary() | {"tokens": run.tokens}
            row |= _host_times(engine, backend, prompts, lengths, options)
            if not options.no_profile and options.tensor_parallel == 1:
                with _profiled() as kernels:
                    serve(engine, prompts, lengths, options.rate)
                row |= kernels
        if options.decode and budget == budgets[-1]:
            row |= _decode_speed(engine, options)
        row["podrt"] = _status(engine, backend)
        print(_RESULT + json.dumps(row), flush=True)


class Run:
    """Times at which tokens came.

    Attributes
    ----------
    tokens : list of list of int
        Of every request.
    times_s : list of list of float
        When each of them came, since the run began.
    arrivals_s : list of float
        When requests came.
    steps : int
        Of the engine.
    """

    def __init__(self, num_requests: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(num_requests)]
        self.times_s: list[list[float]] = [[] for _ in range(num_requests)]
        self.arrivals_s = [0.0] * num_requests
        self.prompt_tokens = self.steps = 0

    def summary(self) -> dict[str, Any]:
        """Return speed, and percentiles of the times to and between tokens."""
        seconds = max(times[-1] for times in self.times_s)
        first = [t[0] - a for t, a in zip(self.times_s, self.arrivals_s, strict=True)]
        between = [gap for times in self.times_s for gap in np.diff(times).tolist()] or [0.0]
        generated = sum(map(len, self.tokens))
        return {
            "seconds": seconds,
            "steps": self.steps,
            "generated_tokens_per_s": generated / seconds,
            "all_tokens_per_s": (generated + self.prompt_tokens) / seconds,
            "ttft_p50_s": float(np.percentile(first, 50)),
            "ttft_p99_s": float(np.percentile(first, 99)),
            "tbt_p50_ms": 1e3 * float(np.percentile(between, 50)),
            "tbt_p99_ms": 1e3 * float(np.percentile(between, 99)),
        }


def serve(
    engine: Any, prompts: Sequence[list[int]], lengths: Sequence[int], rate: float = 0.0
) -> Run:
    """Serve requests greedily, `rate` of them a second (0: all at once), and note times."""
    run, llm = Run(len(prompts)), engine.llm_engine
    run.prompt_tokens = sum(map(len, prompts))
    if rate:
        gaps = np.random.default_rng(0).exponential(1 / rate, len(prompts))
        run.arrivals_s = np.cumsum(gaps).tolist()
    _synchronize()
    began_s, waiting = time.perf_counter(), list(range(len(prompts)))
    while waiting or llm.has_unfinished_requests():
        now_s = time.perf_counter() - began_s
        while waiting and run.arrivals_s[waiting[0]] <= now_s:
            number = waiting.pop(0)
            prompt = {"prompt_token_ids": prompts[number]}
            llm.add_request(str(number), prompt, _sampling(lengths[number]))
        outputs = llm.step()
        run.steps += 1
        now_s = time.perf_counter() - began_s
        for output in outputs:
            number, new = int(output.request_id.split("-")[0]), output.outputs[0].token_ids
            run.tokens[number] += new
            run.times_s[number] += [now_s] * len(new)
    _synchronize()
    return run


def _sampling(length: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=length,
        min_tokens=length,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _engine(
    options: argparse.Namespace, backend: str, mode: str, budget: int, requests: list[Request]
) -> Any:
    from vllm import LLM

    if options.split_write and backend == "PODRT":
        _split_writes()
    longest = max([r.prompt_tokens + options.most_output for r in requests], default=0)
    if options.decode:
        _, prompt, output = _decode_shape(options)
        longest = max(longest, prompt + output)
    folder = Path(tempfile.mkdtemp()) / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_model(options, longest + 64)))
    engine = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=options.dtype,
        enforce_eager=mode == "EAGER",
        max_model_len=longest + 16,
        max_num_batched_tokens=budget,
        max_num_seqs=options.sequences,
        block_size=options.block_size,
        tensor_parallel_size=options.tensor_parallel,
        enable_prefix_caching=False,
        seed=0,
        kv_cache_memory_bytes=int(options.cache_gib * 2**30),
        disable_log_stats=True,
        compilation_config=_compilation(mode, budget),
        attention_backend=backend,
        additional_config={"podrt": {"policy": options.policy}} if backend == "PODRT" else {},
    )
    engine.collective_rpc(_give_weights)
    return engine


def _compilation(mode: str, budget: int) -> dict[str, Any]:
    if mode == "FULL_AND_PIECEWISE":
        return {"cudagraph_mode": mode}
    graphs = {"EAGER": "NONE", "FULL": "FULL", "BREAKABLE": "FULL_AND_PIECEWISE"}[mode]
    found: dict[str, Any] = {"mode": 0, "cudagraph_mode": graphs, "custom_ops": ["all"]}
    if mode != "EAGER":
        found["cudagraph_capture_sizes"] = sorted({*(s for s in _SIZES if s < budget), budget})
    return found


def _model(options: argparse.Namespace, positions: int) -> dict[str, Any]:
    heads, kv_heads = map(int, options.heads.split("/"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options.hidden,
        "head_dim": options.head_dim,
        "intermediate_size": options.hidden * 7 // 2,
        "num_hidden_layers": options.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": options.vocabulary,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": options.dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _give_weights(worker: Any) -> None:
    """Give the model weights among which argmax has something to decide; dummies are too small."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in worker.model_runner.model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, 1.0 if "embed" in name else weight.shape[1] ** -0.5)


def _requests(options: argparse.Namespace) -> list[Request]:
    trace = read_trace(options.trace) if options.trace else sample_trace()
    return trace[: options.requests]


def _prompts(lengths: Sequence[int], vocabulary: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(3, vocabulary, length).tolist() for length in lengths]


def _set_budget(engine: Any, budget: int) -> None:
    """Have the scheduler fill steps with fewer tokens than the engine was made for."""
    engine.llm_engine.engine_core.engine_core.scheduler.max_num_scheduled_tokens = budget


def _decode_shape(options: argparse.Namespace) -> tuple[int, int, int]:
    count, prompt, output = re.split("[x+]", options.decode)
    return int(count), int(prompt), int(output)


def _decode_speed(engine: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Time the steps in which all requests decode: after the last began, before the first ends."""
    count, prompt, output = _decode_shape(options)
    run = serve(engine, _prompts([prompt] * count, options.vocabulary), [output] * count)
    begin_s = max(times[0] for times in run.times_s)
    end_s = min(times[-1] for times in run.times_s)
    inside = sum(begin_s < t <= end_s for times in run.times_s for t in times)
    return {"decode_tokens_per_s": inside / (end_s - begin_s), "decode": options.decode}


def _host_times(
    engine: Any, backend: str, prompts: Any, lengths: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the host's time in a builder and in layers outside of graphs, medians in us.

    Where the GPU is behind, launches wait for it and the mean says nothing.
    """
    if options.tensor_parallel > 1:
        return {}
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    found = AttentionBackendEnum[backend].get_class()
    timed: dict[str, list[float]] = {"build": [], "layer": [], "write": []}
    with (
        _timing(found.get_builder_cls(), "build", timed["build"]),
        _timing(found.get_impl_cls(), "forward", timed["layer"]),
        _timing(found.get_impl_cls(), "do_kv_cache_update", timed["write"]),
    ):
        serve(engine, prompts, lengths, options.rate)
    medians = {name: 1e6 * float(np.median(times or [0.0])) for name, times in timed.items()}
    return {f"host_{name}_us": value for name, value in medians.items()} | {
        "host_layers_a_step": len(timed["layer"]) / max(1, len(timed["build"]))
    }


@contextmanager
def _timing(owner: Any, name: str, times_s: list[float]) -> Iterator[None]:
    inner = getattr(owner, name, None)
    if inner is None:
        yield
        return

    def timed(*args: Any, **kwargs: Any) -> Any:
        began_s = time.perf_counter()
        result = inner(*args, **kwargs)
        times_s.append(time.perf_counter() - began_s)
        return result

    own = name in vars(owner)
    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, inner)
        else:
            delattr(owner, name)


@contextmanager
def _profiled() -> Iterator[dict[str, Any]]:
    """Sum GPU time by kind of kernel; the dictionary is filled at the end."""
    from torch.profiler import ProfilerActivity, profile

    found: dict[str, Any] = {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        yield found
        _synchronize()
    by_name: dict[str, list[float]] = {}
    for event in profiler.profiler.kineto_results.events():
        if event.device_type().name == "CUDA":
            entry = by_name.setdefault(event.name(), [0.0, 0])
            entry[0] += event.duration_ns() / 1e6
            entry[1] += 1
    found["gpu_ms"] = sum(ms for ms, _ in by_name.values())
    for kind, pattern in (("attention", _ATTENTION), ("helpers", _HELPERS), ("writes", _WRITES)):
        found[f"gpu_{kind}_ms"] = sum(
            ms for name, (ms, _) in by_name.items() if _kind_of(name) is pattern
        )
    longest = sorted(by_name.items(), key=lambda entry: -entry[1][0])[:8]
    found["gpu_longest"] = [(name[:90], ms, count) for name, (ms, count) in longest]


def _kind_of(name: str) -> re.Pattern[str] | None:
    return next((p for p in (_WRITES, _HELPERS, _ATTENTION) if p.search(name)), None)


def _announce_plugin() -> None:
    """Let vLLM, in all its processes, find the plugin of a checkout that is not installed."""
    from importlib.metadata import entry_points

    group = "vllm.general_plugins"
    if entry_points(group=group, name="podrt"):
        return
    folder = Path(tempfile.mkdtemp())
    info = folder / "podrt-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: podrt\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        f"[{group}]\npodrt = podrt.integrations.vllm.plugin:register\n"
    )
    sys.path.insert(0, str(folder))
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def _split_writes() -> None:
    from podrt.integrations.vllm.backend import PodrtBackend
    from podrt.integrations.vllm.impl import PodrtImpl

    PodrtImpl.writes_in_forward = PodrtBackend.forward_includes_kv_cache_update = False


def _status(engine: Any, backend: str) -> Any:
    if backend != "PODRT":
        return None
    from podrt.integrations.vllm import status

    return engine.collective_rpc(status)


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize()


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
            parts.append(_agreement(old["tokens"], new["tokens"]))
        lines.append(", ".join(parts))
    return lines


def _agreement(one: list[list[int]], other: list[list[int]]) -> str:
    """Say how far two backends' tokens are the same; random weights part where scores tie."""
    same = [
        next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), len(a))
        for a, b in zip(one, other, strict=True)
    ]
    first = sum(count > 0 for count in same)
    return f"first tokens equal {first}/{len(same)}, all equal up to {np.mean(same):.0f} on average"


if __name__ == "__main__":
    main()
