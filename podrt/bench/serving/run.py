"""`Run`: what an engine made of some requests, token by token, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: Gaps between tokens that a reader notices, in seconds.
_STALLS_S = (0.2, 0.5)


class Run:
    """Tokens and the times at which they came.

    Attributes
    ----------
    tokens : list of list of int
        Of every request.
    times_s : list of list of float
        When each of them came, since the run began.
    arrivals_s : list of float
        When requests came.
    prompt_tokens : int
        Of all requests together.
    steps : int
        Of the engine; 0 where it does not tell.
    margins : list of list of float
        How far the best token was ahead of the second, in log-probability, of every token; empty
        where it was not asked for.
    """

    def __init__(self, num_requests: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(num_requests)]
        self.times_s: list[list[float]] = [[] for _ in range(num_requests)]
        self.margins: list[list[float]] = [[] for _ in range(num_requests)]
        self.arrivals_s = [0.0] * num_requests
        self.prompt_tokens = self.steps = 0

    def summary(self) -> dict[str, Any]:
        """Return speed, and percentiles of latency and of the times to and between tokens."""
        seconds = max(times[-1] for times in self.times_s)
        first = [t[0] - a for t, a in zip(self.times_s, self.arrivals_s, strict=True)]
        whole = [t[-1] - a for t, a in zip(self.times_s, self.arrivals_s, strict=True)]
        between = [gap for times in self.times_s for gap in np.diff(times).tolist()] or [0.0]
        generated = sum(map(len, self.tokens))
        return {
            "seconds": seconds,
            "steps": self.steps,
            "requests_per_min": 60 * len(self.tokens) / seconds,
            "generated_tokens_per_s": generated / seconds,
            "all_tokens_per_s": (generated + self.prompt_tokens) / seconds,
            **_percentiles("ttft", "s", first),
            **_percentiles("latency", "s", whole),
            **_percentiles("tbt", "ms", [1e3 * gap for gap in between]),
            **{
                f"stalls_over_{round(1e3 * stall_s)}_ms": sum(gap > stall_s for gap in between)
                for stall_s in _STALLS_S
            },
        }


def agreement(
    one: Sequence[Sequence[int]],
    other: Sequence[Sequence[int]],
    margins: Sequence[Sequence[float]] = (),
) -> str:
    """Say how far the tokens of two runs are the same; random weights part where scores tie.

    `margins` are those of the first run: then it is said how close the second choice was where
    requests part.
    """
    same = [
        next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), len(a))
        for a, b in zip(one, other, strict=True)
    ]
    first = sum(count > 0 for count in same)
    said = f"first tokens equal {first}/{len(same)}, all equal up to {np.mean(same):.0f} on average"
    parted = [(margins[i][n], i) for i, n in enumerate(same) if margins and n < len(one[i])]
    if not margins:
        return said
    whole = f", {len(same) - len(parted)} requests to their end"
    if not parted:
        return said + whole
    everywhere = np.median(np.concatenate(margins))
    return (
        f"{said}{whole}; where others part the first run was decided by {max(parted)[0]:.3f} at "
        f"most, by {everywhere:.3f} in the median of all tokens"
    )


def _percentiles(name: str, unit: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p{p}_{unit}": float(np.percentile(values, p)) for p in (50, 99)}
