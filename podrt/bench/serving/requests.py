"""What is served: prompts of random tokens, as long as a trace or the command line says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from podrt.workloads.files import named_by
from podrt.workloads.traces import Request, read_trace, sample_trace

BATCH_FORMAT = "REQUESTSxPROMPT+OUTPUT"


class Batch(NamedTuple):
    """Requests that are all alike."""

    requests: int
    prompt_tokens: int
    new_tokens: int


def parse_batch(option: str, text: str) -> Batch:
    """Read `BATCH_FORMAT`, such as ``"32x4096+128"``.

    Raises
    ------
    ValueError
        It is something else, or one of the numbers is 0; names the option.
    """
    found = re.fullmatch(r"(\d+)x(\d+)\+(\d+)", text)
    batch = Batch(*map(int, found.groups())) if found else None
    if batch is None or not all(batch):
        raise ValueError(f"{option} {text}: expected {BATCH_FORMAT}, such as 32x4096+128")
    return batch


def parse_numbers(option: str, text: str, *, least: int = 1) -> list[int]:
    """Read whole numbers such as ``"512,1024"``; ValueError names the option of others."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise ValueError(
            f"{option} {text}: expected whole numbers of at least {least}, with commas between them"
        )
    return list(map(int, parts))


def parse_number(option: str, text: str) -> int:
    """Read one whole number of at least 1; ValueError names the option of others."""
    numbers = parse_numbers(option, text)
    if len(numbers) > 1:
        raise ValueError(f"{option} {text}: expected one number")
    return numbers[0]


def parse_names(option: str, text: str, allowed: Sequence[str]) -> list[str]:
    """Read names such as ``"eager,graphs"``; ValueError names the option of others."""
    names = text.split(",")
    for name in names:
        if name not in allowed:
            raise ValueError(f"{option} {text}: {name!r} is not one of {', '.join(allowed)}")
    return names


class Load(NamedTuple):
    """Requests of one trace.

    Attributes
    ----------
    name : str
        Of the trace: its file's, without the ending.
    prompts : list of list of int
        Tokens of each request.
    lengths : list of int
        Tokens that each generates, at least 1.
    """

    name: str
    prompts: list[list[int]]
    lengths: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longest request, those that it generates included."""
        return max(len(p) + n for p, n in zip(self.prompts, self.lengths, strict=True))

    def first(self, count: int) -> Load:
        """Return the first requests."""
        return Load(self.name, self.prompts[:count], self.lengths[:count])


def load_of(trace: str | None, count: int, most_output: int, vocabulary: int) -> Load:
    """Return the first requests of a trace (podrt's sample if None), none of long outputs."""
    requests = requests_of(trace, count)
    return Load(
        name_of_trace(trace),
        prompts_of([request.prompt_tokens for request in requests], vocabulary),
        [new_tokens(request, most_output) for request in requests],
    )


def name_of_trace(trace: str | None) -> str:
    """Return what a trace is called in results: its file's name, without the ending."""
    return Path(trace).stem if trace else "sample"


def new_tokens(request: Request, most_output: int) -> int:
    """Return how many tokens a request generates where none generates more than so many."""
    return max(1, min(request.output_tokens, most_output))


def requests_of_traces(counts: str, traces: Sequence[str | None]) -> list[int]:
    """Return how many requests of each trace are served; the last number counts for all others.

    Parameters
    ----------
    counts : str
        Such as ``"16,48"``.
    traces : sequence of str or None

    Raises
    ------
    ValueError
        There are more numbers than traces, or one is no number of requests.
    """
    numbers = parse_numbers("--requests", counts, least=0)
    if len(numbers) > len(traces):
        raise ValueError(
            f"--requests {counts}: {len(numbers)} numbers for {len(traces)} trace"
            f"{'s' * (len(traces) > 1)}; give one for each --trace, or one for all"
        )
    return numbers + numbers[-1:] * (len(traces) - len(numbers))


class Rate(NamedTuple):
    """How fast requests come.

    Attributes
    ----------
    value : float
        Requests a second, or a share of the capacity; 0: all of them at the beginning.
    is_share : bool
        Whether `value` is a share of what the first contender serves when all are there at once.
    """

    value: float
    is_share: bool = False

    def of(self, capacity: float | None) -> float:
        """Return requests a second, given the first contender's, which shares need."""
        if not self.is_share:
            return self.value
        if capacity is None:
            raise ValueError(
                f"--rates: a rate of {self.value:.0%}: what it is a share of was not measured; "
                "have the rate 0 before it, as in 0,70%,90%"
            )
        return self.value * capacity


def parse_rates(text: str) -> list[Rate]:
    """Read rates such as ``"0,70%,90%"`` or ``"1.5,2"``.

    Raises
    ------
    ValueError
        One is no number, or negative; or a share has no rate 0 before it, which measures what it is
        a share of.
    """
    rates = []
    for part in text.split(","):
        is_share = part.endswith("%")
        try:
            value = float(part.removesuffix("%")) / (100 if is_share else 1)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf") or (is_share and not value):
            raise ValueError(
                f"--rates {text}: {part!r}: expected requests a second, or a share such as 70%"
            )
        rates.append(Rate(value, is_share))
    for number, rate in enumerate(rates):
        rate.of(1.0 if Rate(0.0) in rates[:number] else None)
    return rates


def requests_of(trace: str | None, count: int) -> list[Request]:
    """Return the first requests of a CSV file, or of podrt's sample; ValueError names --trace."""
    if not trace:
        return sample_trace()[:count]
    with named_by("--trace", trace):
        return read_trace(trace)[:count]


def prompts_of(lengths: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Return a prompt of each length, the same ones at every call."""
    random = np.random.default_rng(0)
    return [random.integers(3, vocabulary, length).tolist() for length in lengths]
