"""Traces: when requests arrive and how long their prompts and outputs are."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import resources
from pathlib import Path

from podrt.workloads.files import no_text

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Request:
    """One request of a trace.

    Attributes
    ----------
    arrival_s : float
        When it arrives, in seconds from the start of the trace.
    prompt_tokens : int
        Tokens of the prompt, at least 1.
    output_tokens : int
        Tokens to generate; with 0 only the prompt is processed.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrival_s) and self.arrival_s >= 0):
            raise ValueError(f"arrival_s is {self.arrival_s}; it must be finite and 0 or more")
        for name, least in (("prompt_tokens", 1), ("output_tokens", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def kv_tokens(self) -> int:
        """Keys of the request when it ends; its last output token is never fed back."""
        return self.prompt_tokens + max(self.output_tokens - 1, 0)


@dataclass(frozen=True)
class _Format:
    """Columns of one kind of CSV file; without `arrival` everything arrives at 0."""

    arrival: str | None
    prompt: str
    output: str

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.arrival, self.prompt, self.output)))


_TIMESTAMP = "TIMESTAMP"
_FORMATS = (
    _Format("arrival_s", "prompt_tokens", "output_tokens"),
    _Format(_TIMESTAMP, "ContextTokens", "GeneratedTokens"),
    _Format(None, "num_prefill_tokens", "num_decode_tokens"),
)


def sample_trace() -> list[Request]:
    """Return the trace that ships with podrt: 200 synthetic requests over about 100 s.

    Made with NumPy's ``default_rng(2410)``: Poisson arrivals, two a second; of every ten requests
    about six are chat (median prompt 900 and output 140 tokens) and four are code (median prompt
    1800 and output 20). All lengths are log-normal, with prompts of 8 to 8192 tokens and outputs
    of 1 to 1024.
    """
    with resources.as_file(resources.files("podrt") / "data" / "sample_trace.csv") as path:
        return read_trace(path)


def read_trace(path: str | os.PathLike[str]) -> list[Request]:
    """Read a CSV file of requests; further columns are allowed.

    The header decides which format it is:

    - ``arrival_s, prompt_tokens, output_tokens``: podrt's own;
    - ``TIMESTAMP, ContextTokens, GeneratedTokens``: Azure's LLM inference traces; arrivals count
      from the earliest row;
    - ``num_prefill_tokens, num_decode_tokens``: lengths alone; everything arrives at 0.

    Parameters
    ----------
    path : path-like
        UTF-8 file with one header line.

    Returns
    -------
    list of Request
        In the order of the file.

    Raises
    ------
    ValueError
        The header is unknown or a value is not what its column needs: names file, line, column. Or
        the file is no CSV in UTF-8 at all.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            form = _format_of(rows.fieldnames or (), path)
            cells = [_row_numbers(row, form, f"{path}:{rows.line_num}") for row in rows]
    except UnicodeDecodeError as error:
        raise ValueError(no_text(os.fspath(path), error)) from error
    except csv.Error as error:
        raise ValueError(f"{path}: expected a CSV file of requests, got {error}") from error
    arrivals = [arrival for arrival, _, _ in cells]
    if form.arrival == _TIMESTAMP:
        first = min(arrivals, default=0.0)
        arrivals = [(arrival - first) / 1e6 for arrival in arrivals]
    return [
        Request(arrival_s, int(prompt), int(output))
        for arrival_s, (_, prompt, output) in zip(arrivals, cells, strict=True)
    ]


def _format_of(header: Sequence[str], path: str | os.PathLike[str]) -> _Format:
    for form in _FORMATS:
        if set(form.columns) <= set(header):
            return form
    known = " or ".join(f"({', '.join(form.columns)})" for form in _FORMATS)
    raise ValueError(f"{path}:1: columns are ({', '.join(header)}); expected {known}")


def _row_numbers(
    row: dict[str, str | None], form: _Format, where: str
) -> tuple[float, float, float]:
    """Arrival (microseconds for a timestamp, else seconds), prompt and output of one row."""

    def read(column: str, parse: Callable[[str], float], expected: str) -> float:
        text = row[column]
        try:
            return parse(text or "")
        except (ValueError, OverflowError):
            got = "missing" if text is None else repr(text)
            raise ValueError(f"{where}: {column} is {got}; expected {expected}") from None

    if form.arrival is None:
        arrival = 0.0
    elif form.arrival == _TIMESTAMP:
        arrival = read(form.arrival, _timestamp_us, "a time such as 2024-01-31 12:00:00.5")
    else:
        arrival = read(form.arrival, _seconds, "seconds, 0 or more")
    prompt = read(form.prompt, partial(_whole, least=1), "a whole number of at least 1")
    return arrival, prompt, read(form.output, partial(_whole, least=0), "a whole number, 0 or more")


def _timestamp_us(text: str) -> float:
    time = datetime.fromisoformat(text)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(
        microseconds=1
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(text)
    return seconds


def _whole(text: str, least: int) -> float:
    number = float(text)
    if not number.is_integer() or number < least:
        raise ValueError(text)
    return number
