"""Chunked-prefill scheduling: a trace of requests becomes a sequence of hybrid batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import numpy.typing as npt

from podrt.workloads.traces import Request, read_trace, sample_trace

__all__ = ["HybridStep", "Request", "hybrid_steps", "read_trace", "sample_trace", "schedule"]

Int32Array = npt.NDArray[np.int32]

#: Steps of the schedule that batches are chosen from; a longer trace shows nothing new.
_MAX_STEPS = 5000


@dataclass(frozen=True, eq=False)
class HybridStep:
    """One iteration of the server: decodes first, then prefill chunks.

    Attributes
    ----------
    start_s : float
        When the step starts.
    request_ids : tuple of int
        Positions of the step's requests in the list that was scheduled.
    q_lens : int32 array [requests of the step]
        Query tokens of each: 1 for a decode, the chunk for a prefill.
    kv_lens : int32 array [requests of the step]
        Keys of each, this step's tokens included.
    num_decodes : int
        How many of the requests decode; they come first.
    """

    start_s: float
    request_ids: tuple[int, ...]
    q_lens: Int32Array
    kv_lens: Int32Array
    num_decodes: int

    @cached_property
    def qo_indptr(self) -> Int32Array:
        """First row of each request in q, int32 ``[requests of the step + 1]``."""
        return np.concatenate(([0], np.cumsum(self.q_lens))).astype(np.int32)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """``(q_len, kv_len)`` of every request."""
        return list(zip(self.q_lens.tolist(), self.kv_lens.tolist(), strict=True))

    @property
    def num_prefills(self) -> int:
        """How many requests get a chunk of their prompt."""
        return len(self.request_ids) - self.num_decodes

    @property
    def is_hybrid(self) -> bool:
        """Whether it has both."""
        return bool(self.num_decodes and self.num_prefills)

    @property
    def total_tokens(self) -> int:
        """Query tokens of the step."""
        return int(self.q_lens.sum())

    @property
    def num_prefill_tokens(self) -> int:
        """Query tokens of all prefill chunks."""
        return self.total_tokens - self.num_decodes


@dataclass
class _Progress:
    """How far a running request is."""

    request_id: int
    request: Request
    kv_len: int = 0

    @property
    def prefill_left(self) -> int:
        return max(self.request.prompt_tokens - self.kv_len, 0)

    @property
    def finished(self) -> bool:
        return self.kv_len == self.request.kv_tokens


def schedule(
    requests: Sequence[Request],
    token_budget: int,
    *,
    max_batch_size: int | None = None,
    max_kv_tokens: int | None = None,
    iteration_time_s: float = 0.03,
) -> Iterator[HybridStep]:
    """Yield the hybrid batches that serve `requests` with chunked prefill.

    Every step takes one token of every running decode; prompts then fill what is left of the
    budget, first come first served, the last of them with a chunk. The last chunk of a prompt
    yields the first output token, so a request decodes ``output_tokens - 1`` times. A request
    that was started is never set back.

    The clock starts at 0 and every step takes `iteration_time_s`, whatever it holds. A request
    can join the steps that start at or after its arrival; when nothing is left to do, the clock
    jumps to the next arrival.

    Parameters
    ----------
    requests : sequence of Request
        In any order; requests that arrive together are served in the order given.
    token_budget : int
        Most query tokens of a step. Also bounds the running requests, so that every decode fits.
    max_batch_size : int, optional
        Most requests that run at once.
    max_kv_tokens : int, optional
        Room of the KV cache in tokens. A request starts once its longest context fits beside
        those of the running ones.
    iteration_time_s : float
        Time of one step.

    Yields
    ------
    HybridStep
        Never empty.

    Raises
    ------
    ValueError
        A limit is not positive, or a request alone is larger than `max_kv_tokens`.
    """
    for name, limit in (
        ("token_budget", token_budget),
        ("max_batch_size", max_batch_size),
        ("max_kv_tokens", max_kv_tokens),
    ):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} is {limit}; it must be at least 1")
    if not (math.isfinite(iteration_time_s) and iteration_time_s > 0):
        raise ValueError(f"iteration_time_s is {iteration_time_s}; it must be finite and above 0")
    for number, request in enumerate(requests):
        if max_kv_tokens is not None and request.kv_tokens > max_kv_tokens:
            raise ValueError(
                f"requests[{number}] grows to {request.kv_tokens} tokens; "
                f"max_kv_tokens={max_kv_tokens} cannot hold it: raise the limit or drop the request"
            )
    max_running = min(token_budget, max_batch_size or token_budget)
    return _steps(requests, token_budget, max_running, max_kv_tokens, iteration_time_s)


def hybrid_steps(
    requests: Sequence[Request], *, budget: int, max_kv_tokens: int, count: int
) -> list[HybridStep]:
    """Return `count` steps with prefills and decodes, spread evenly over the schedule.

    The server is saturated: every request of the trace waits from the start, so the room of the
    cache and not the arrival times decide how many run together.

    Raises
    ------
    ValueError
        The trace has fewer hybrid steps than that.
    """
    waiting = [replace(request, arrival_s=0.0) for request in requests]
    steps = islice(schedule(waiting, budget, max_kv_tokens=max_kv_tokens), _MAX_STEPS)
    hybrid = [step for step in steps if step.is_hybrid]
    if len(hybrid) < count:
        raise ValueError(
            f"batches={count}: the trace gives {len(hybrid)} steps with prefill and decode; "
            "ask for fewer, or lower --budget"
        )
    chosen = np.linspace(0, len(hybrid) - 1, count + 2)[1:-1]
    return [hybrid[int(position)] for position in chosen]


def _steps(
    requests: Sequence[Request],
    token_budget: int,
    max_running: int,
    max_kv_tokens: int | None,
    iteration_time_s: float,
) -> Iterator[HybridStep]:
    in_order = sorted(range(len(requests)), key=lambda number: requests[number].arrival_s)
    waiting = deque(_Progress(number, requests[number]) for number in in_order)
    running: list[_Progress] = []
    now_s = 0.0
    while waiting or running:
        if not running:
            now_s = max(now_s, waiting[0].request.arrival_s)
        decodes = [progress for progress in running if not progress.prefill_left]
        chunks = [progress for progress in running if progress.prefill_left]
        left = token_budget - len(decodes) - sum(chunk.prefill_left for chunk in chunks)
        while left > 0 and _can_start(waiting, running, now_s, max_running, max_kv_tokens):
            chunks.append(waiting.popleft())
            running.append(chunks[-1])
            left -= chunks[-1].prefill_left
        yield _advance(decodes, chunks, token_budget, now_s)
        running = [progress for progress in running if not progress.finished]
        now_s += iteration_time_s


def _can_start(
    waiting: deque[_Progress],
    running: list[_Progress],
    now_s: float,
    max_running: int,
    max_kv_tokens: int | None,
) -> bool:
    """Whether the first waiting request may start; nobody overtakes it, so nobody starves."""
    if not waiting or waiting[0].request.arrival_s > now_s or len(running) >= max_running:
        return False
    held = sum(progress.request.kv_tokens for progress in running)
    return max_kv_tokens is None or held + waiting[0].request.kv_tokens <= max_kv_tokens


def _advance(
    decodes: list[_Progress], chunks: list[_Progress], token_budget: int, now_s: float
) -> HybridStep:
    """Move every request of the step on, and describe the step."""
    left = token_budget - len(decodes)
    q_lens = [1] * len(decodes)
    for chunk in chunks:
        q_lens.append(min(left, chunk.prefill_left))
        left -= q_lens[-1]
    members = decodes + chunks
    for member, q_len in zip(members, q_lens, strict=True):
        member.kv_len += q_len
    return HybridStep(
        start_s=now_s,
        request_ids=tuple(member.request_id for member in members),
        q_lens=np.array(q_lens, np.int32),
        kv_lens=np.array([member.kv_len for member in members], np.int32),
        num_decodes=len(decodes),
    )
