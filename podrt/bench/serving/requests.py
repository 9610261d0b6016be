"""What is served: prompts of random tokens, as long as a trace or the command line says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from podrt.workloads.traces import Request, read_trace, sample_trace

BATCH_FORMAT = "REQUESTSxPROMPT+OUTPUT"


class Batch(NamedTuple):
    """Requests that are all alike."""

    requests: int
    prompt_tokens: int
    new_tokens: int


def parse_batch(text: str) -> Batch:
    """Read `BATCH_FORMAT`, such as ``"32x4096+128"``.

    Raises
    ------
    ValueError
        It is something else.
    """
    found = re.fullmatch(r"(\d+)x(\d+)\+(\d+)", text)
    if found is None:
        raise ValueError(f"{text!r}: expected {BATCH_FORMAT}, such as 32x4096+128")
    return Batch(*map(int, found.groups()))


def requests_of(trace: str | None, count: int) -> list[Request]:
    """Return the first requests of a CSV file, or of podrt's sample."""
    return (read_trace(trace) if trace else sample_trace())[:count]


def prompts_of(lengths: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Return a prompt of each length, the same ones at every call."""
    random = np.random.default_rng(0)
    return [random.integers(3, vocabulary, length).tolist() for length in lengths]
