"""Requests served step by step by vLLM's engine, and the times at which their tokens came."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np


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
    synchronize()
    began_s, waiting = time.perf_counter(), list(range(len(prompts)))
    while waiting or llm.has_unfinished_requests():
        now_s = time.perf_counter() - began_s
        while waiting and run.arrivals_s[waiting[0]] <= now_s:
            number = waiting.pop(0)
            prompt = {"prompt_token_ids": prompts[number]}
            llm.add_request(str(number), prompt, _sampling(lengths[number]))
        if not llm.has_unfinished_requests():
            continue  # none has come
        outputs = llm.step()
        run.steps += 1
        now_s = time.perf_counter() - began_s
        for output in outputs:
            number, new = int(output.request_id.split("-")[0]), output.outputs[0].token_ids
            run.tokens[number] += new
            run.times_s[number] += [now_s] * len(new)
    synchronize()
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


def synchronize() -> None:
    import torch

    torch.cuda.synchronize()
