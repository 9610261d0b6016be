"""Requests served step by step by vLLM's engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from podrt.bench.serving.run import Run


def serve(
    engine: Any,
    prompts: Sequence[list[int]],
    lengths: Sequence[int],
    rate: float = 0.0,
    *,
    margins: bool = False,
) -> Run:
    """Serve requests greedily, `rate` of them a second (0: all at once), and note times.

    `margins` notes those too, for which the engine computes log-probabilities.
    """
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
            llm.add_request(str(number), prompt, _sampling(lengths[number], margins))
        if not llm.has_unfinished_requests():
            continue  # none has come
        outputs = llm.step()
        run.steps += 1
        now_s = time.perf_counter() - began_s
        for output in outputs:
            number, new = int(output.request_id.split("-")[0]), output.outputs[0].token_ids
            run.tokens[number] += new
            run.times_s[number] += [now_s] * len(new)
            run.margins[number] += map(_margin, output.outputs[0].logprobs or ())
    synchronize()
    return run


def _margin(logprobs: Any) -> float:
    """Return how far the likeliest token is ahead of the next."""
    best, second, *_ = sorted((each.logprob for each in logprobs.values()), reverse=True)
    return float(best - second)


def _sampling(length: int, margins: bool) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=length,
        min_tokens=length,
        ignore_eos=True,
        detokenize=False,
        logprobs=2 if margins else None,
        output_kind=RequestOutputKind.DELTA,
    )


def synchronize() -> None:
    import torch

    torch.cuda.synchronize()
