"""transformers' continuous batching with podrt beside its own attention and FlashAttention-3.

    podrt bench serving transformers --budgets 2048 --batch 32x4096+128 --out FILE.json

One model of random weights for all contenders, of Llama 3 8B's shape by default. Each contender
serves all requests twice with one manager: the first time captures graphs and compiles, the second
is measured.

Contenders: ``sdpa``, the engine's default; ``fa3``, FlashAttention-3 over the keys that the engine
gathers in every layer, as its own flash path calls it; ``podrt-serial`` and ``podrt``. Modes:
``eager``, and ``graphs``, the engine's default for the flash path.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs

from podrt.bench.serving.clock import timing
from podrt.bench.serving.document import Journal
from podrt.bench.serving.gpu_clock import gpu_times
from podrt.bench.serving.progress import rows_bar
from podrt.bench.serving.requests import (
    BATCH_FORMAT,
    load_of,
    parse_batch,
    parse_names,
    parse_numbers,
    prompts_of,
)
from podrt.bench.serving.run import Run, agreement
from podrt.gpu.device import current_device
from podrt.integrations.transformers import enable, functions
from podrt.integrations.transformers.engine import Engine
from podrt.workloads.lengths import parse_heads, parse_paged

CONTENDERS = ("sdpa", "fa3", "podrt-serial", "podrt", "podrt-shared")
#: Those that are measured without being asked for.
_USUAL = CONTENDERS[:4]
MODES = ("eager", "graphs")
_BEHIND_GATHER = "behind_gather_flash"


class Requests(NamedTuple):
    """What is served: prompts, and how many tokens each generates."""

    name: str
    prompts: list[list[int]]
    new_tokens: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what a command line asks for, this process's by default, and print the results."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    # All is read before the model is made, which takes a while.
    runs, requests = list(_runs(options)), _requests(options)
    parse_heads(options.heads)
    parse_paged(options.page_size, "transformers")
    current_device()  # raises without one
    model = _model(options)
    AttentionInterface.register(_BEHIND_GATHER, lambda *args, **kwargs: Fa3.run(*args, **kwargs))
    packages = ("transformers", "torch", "numpy", "fa3_fwd")
    journal = Journal(
        "transformers", arguments, options.out, packages=packages, compare=comparisons
    )
    with rows_bar(len(runs)) as bar:
        for budget, contender, mode in runs:
            bar.show(f"{contender}, {mode}, {budget} tokens a step")
            row = {"contender": contender, "mode": mode, "budget": budget, "trace": requests.name}
            try:
                row |= measure(model, requests, options, budget, contender, mode)
            except Exception as error:  # one that fails is a result too
                row["error"] = repr(error)
            journal.add(row)
            bar.reach(len(journal.rows))
    journal.close()


def _runs(options: argparse.Namespace) -> Iterator[tuple[int, str, str]]:
    """Return budgets, contenders and modes in the order in which they are measured."""
    contenders = parse_names("--contenders", options.contenders, CONTENDERS)
    modes = parse_names("--modes", options.modes, MODES)
    for budget in parse_numbers("--budgets", options.budgets):
        for contender in contenders:
            for mode in ("eager",) if contender == "sdpa" else modes:
                yield budget, contender, mode


def measure(
    model: Any,
    requests: Requests,
    options: argparse.Namespace,
    budget: int,
    contender: str,
    mode: str,
) -> dict[str, Any]:
    """Return how fast a contender serves the requests."""
    with _running(model, contender):
        try:
            serve = _server(model, requests, options, budget, graphs=mode == "graphs")
            serve()
            times = HostTimes(contender)
            with times.taken():
                began_s, results = serve()
            kernels: dict[str, Any] = {}
            if options.profile:
                with gpu_times() as kernels:
                    serve()
        finally:
            model.destroy_cached_continuous_batching_manager()
    run = _run_of(results, began_s)
    run.prompt_tokens = sum(map(len, requests.prompts))
    run.steps = len(times.us["lists"])
    return run.summary() | times.summary() | kernels | {"tokens": run.tokens}


def _run_of(results: Sequence[Any], began_s: float) -> Run:
    """Return what a manager made, in times since it was asked."""
    run = Run(len(results))
    run.tokens = [result.generated_tokens for result in results]
    run.times_s = [[time_s - began_s for time_s in result.timestamps] for result in results]
    run.arrivals_s = [result.created_time - began_s for result in results]
    return run


def _server(
    model: Any, requests: Requests, options: argparse.Namespace, budget: int, *, graphs: bool
) -> Callable[[], tuple[float, list[Any]]]:
    generation = GenerationConfig(
        max_new_tokens=requests.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    page_size = parse_paged(options.page_size, "transformers")
    batching = ContinuousBatchingConfig(
        page_size=page_size,
        num_blocks=options.cache_tokens // page_size,
        max_batch_tokens=budget,
        max_requests_per_batch=options.sequences,
        use_cuda_graph=graphs,
        # Where blocks are shared the timed run finds its prompts in the cache.
        allow_block_sharing=options.shared > 0,
        auto_switch_to_flash=False,
    )

    def serve() -> tuple[float, list[Any]]:
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        results = model.generate_batch(
            requests.prompts,
            generation_config=generation,
            continuous_batching_config=batching,
            record_timestamps=True,
            persistent_manager=True,
            progress_bar=False,
        )
        torch.cuda.synchronize()
        return began_s, list(results.values())

    return serve


@contextmanager
def _running(model: Any, contender: str) -> Iterator[None]:
    """Have the model run on a contender."""
    if contender.startswith("podrt"):
        policy = "serial" if contender == "podrt-serial" else "auto"
        with enable(model, policy=policy, shared_prefixes=contender == "podrt-shared"):
            yield
        return
    before = model.config._attn_implementation
    model.config._attn_implementation_internal = _BEHIND_GATHER if contender == "fa3" else contender
    try:
        yield
    finally:
        model.config._attn_implementation_internal = before


class HostTimes:
    """What attention takes of the engine's thread, by call.

    Lists: of the step's tokens, and for an engine that gathers of all their keys. Plans: podrt's.
    Layers: podrt's writes of new keys and values, and its runs. Writes: those of an engine, in its
    own update with what it gathers. Runs: the attention function's. Graphs skip the latter three.

    Parameters
    ----------
    contender : str
    """

    def __init__(self, contender: str) -> None:
        self._calls: dict[str, tuple[Any, str]] = {
            "lists": (ContinuousBatchingIOs, "prepare_batch_tensors")
        }
        if contender.startswith("podrt"):
            self._calls |= {"plans": (Engine, "plan"), "layers": (functions, "paged_attention")}
        elif contender == "fa3":
            self._calls |= {"writes": (PagedAttentionCache, "update"), "runs": (Fa3, "run")}
        self.us: dict[str, list[float]] = {name: [] for name in self._calls}

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Time all calls in the block."""
        with ExitStack() as stack:
            for name, (owner, method) in self._calls.items():
                stack.enter_context(timing(owner, method, self.us[name]))
            yield

    def summary(self) -> dict[str, Any]:
        """Return calls a step and their medians, and what they come to; nothing of ``sdpa``."""
        if len(self.us) == 1:  # its function is timed by nobody
            return {}
        steps, found = len(self.us["lists"]), {"host_us_a_step": 0.0}
        for name, times_us in self.us.items():
            if times_us:
                found[f"{name}_a_step"] = len(times_us) / steps
                found[f"{name}_us"] = float(np.median(times_us))
                found["host_us_a_step"] += found[f"{name}_a_step"] * found[f"{name}_us"]
        return found


def comparisons(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return how fast every row is, and how far its tokens are the same, beside the first one's.

    The first of its budget.
    """
    first: dict[int, dict[str, Any]] = {}
    lines = []
    for row in (row for row in rows if "tokens" in row):
        one = first.setdefault(row["budget"], row)
        if one is not row:
            names = (f"{each['contender']} {each['mode']}" for each in (row, one))
            speed = row["all_tokens_per_s"] / one["all_tokens_per_s"]
            lines.append(
                f"budget {row['budget']}: {' and '.join(names)}: tokens/s {speed:.3f}x, "
                + agreement(one["tokens"], row["tokens"])
            )
    return lines


class Fa3:
    """FlashAttention-3 over gathered keys; its wheel's function, as transformers calls its own."""

    @staticmethod
    def run(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        *,
        scaling: float,
        cu_seq_lens_q: Any,
        cu_seq_lens_k: Any,
        max_length_q: int,
        max_length_k: int,
        **_: Any,
    ) -> tuple[Any, None]:
        """Attend, as transformers' attention interface has it."""
        import fa3_fwd_interface as fa3

        q, k, v = (each[0].transpose(0, 1).contiguous() for each in (query, key, value))
        out = fa3.flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seq_lens_q,
            cu_seq_lens_k,
            max_length_q,
            max_length_k,
            softmax_scale=scaling,
            causal=True,
        )
        return (out[0] if isinstance(out, tuple) else out).unsqueeze(0), None


def _model(options: argparse.Namespace) -> Any:
    heads, kv_heads = parse_heads(options.heads)
    config = LlamaConfig(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=options.hidden * 7 // 2,
        vocab_size=options.vocabulary,
        max_position_embeddings=131072,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype="bfloat16")
    return model.eval()


def _requests(options: argparse.Namespace) -> Requests:
    if options.shared and not options.batch:
        raise ValueError("--shared: is about the prompts of --batch, of which there are none")
    if options.batch:
        count, prompt, output = parse_batch("--batch", options.batch)
        prompts = prompts_of([prompt] * count, options.vocabulary)
        shared = prompts[0][: options.shared]
        prompts = [[*shared, *each[len(shared) :]] for each in prompts]
        name = f"{options.batch}, {options.shared} shared" if options.shared else options.batch
        return Requests(name, prompts, output)
    load = load_of(options.trace, options.requests, options.most_output, options.vocabulary)
    return Requests(load.name, load.prompts, options.most_output)


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser("podrt bench serving transformers", description=about)
    add = parser.add_argument
    add("--contenders", default=",".join(_USUAL), help=f"in this order, of {', '.join(CONTENDERS)}")
    add("--modes", default=",".join(MODES))
    add("--budgets", default="2048", help="tokens of a step, such as 512,1024,2048")
    add("--batch", default="", help=f"{BATCH_FORMAT}; without it a trace is served")
    add(
        "--shared",
        type=int,
        default=0,
        help="first tokens that the prompts of --batch share, with their blocks of the cache, in "
        "which the timed run finds them: it decodes; podrt-shared reads those keys once",
    )
    add("--trace", help="CSV file of request lengths; podrt's sample without it")
    add("--requests", type=int, default=40, help="of the trace, from its beginning")
    add("--most-output", type=int, default=128, help="tokens generated for a request of a trace")
    add("--sequences", type=int, default=64, help="most requests at once")
    add("--cache-tokens", type=int, default=176_000)
    add("--page-size", default="64", help="tokens of a page; the engine's cache is paged")
    add("--profile", action="store_true", help="sum GPU time by kind of kernel in another run")
    add("--layers", type=int, default=32)
    add("--hidden", type=int, default=4096)
    add("--heads", default="32/8", help="query and KV heads")
    add("--vocabulary", type=int, default=128256)
    add("--out", type=Path, help="JSON file for the results")
    return parser


if __name__ == "__main__":
    main()
