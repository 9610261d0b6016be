"""Axes of a sweep: what of a `Policy` is varied, and the combinations of their values.

Which values go together is not said here: `Policy`, the variants' configs and the planner refuse
what cannot be, and a combination that one of them refuses is skipped with its words.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple, get_args

import numpy as np

from podrt.policy.policies import Family, Policy

Value = str | int | bool | tuple[int, int] | None

#: What stands for "not fixed".
UNFIXED = "auto"
#: Another name of `Policy.shape`, by the CTAs that share an SM.
CTAS_PER_SM = "ctas_per_sm"
_SHAPES = {"2": "large", "4": "small"}


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("expected a whole number")
    return int(text)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def _ratio(text: str) -> tuple[int, int]:
    prefill, colon, decode = text.partition(":")
    if not (colon and prefill.isdecimal() and decode.isdecimal()):
        raise ValueError('expected a ratio of prefill to decode, such as "1:3"')
    return int(prefill), int(decode)


def _shape(text: str) -> str:
    if text not in _SHAPES:
        raise ValueError(f"allowed are {', '.join(_SHAPES)}")
    return _SHAPES[text]


#: Axes and how their values are read; all but `CTAS_PER_SM` are fields of `Policy`.
AXES: Mapping[str, Callable[[str], Value]] = {
    "family": str,
    "serial": _flag,
    "decode_only_sms": _whole,
    "prefill_only_sms": _whole,
    "ratio": _ratio,
    CTAS_PER_SM: _shape,
    "shape": str,
    "decode_rows": _whole,
    "large_prefill_tile": _flag,
    "head_pairs": _flag,
    "prefill_tile_keys": _whole,
    "prefill_ring": _whole,
    "decode_ring": _whole,
    "decode_piece_keys": _whole,
    "limit_splits": _flag,
    "taper_decode": _flag,
    "deterministic": _flag,
    "prefill_order": str,
    "max_partial_bytes": _whole,
}


@dataclass(frozen=True)
class Combination:
    """One value of every axis.

    Attributes
    ----------
    fixed : tuple of (str, value)
        Fields of `Policy` and what they are fixed to, in the order of `AXES`.
    """

    fixed: tuple[tuple[str, Value], ...]

    @property
    def name(self) -> str:
        """Readable name, different for different combinations: ``"hopper decode_only_sms=16"``."""
        parts = [
            str(value) if field == "family" else f"{field}={value_text(value)}"
            for field, value in self.fixed
        ]
        return " ".join(parts) or UNFIXED

    def policy(self) -> Policy:
        """Return the policy; raises as `Policy` where values do not go together."""
        return Policy(**dict(self.fixed))  # type: ignore[arg-type]

    def over(self, policy: Policy) -> Policy:
        """Return another policy with what is fixed here fixed too; raises as `policy`."""
        return replace(policy, **dict(self.fixed))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.fixed}


def combination_of(fields: Mapping[str, Any]) -> Combination:
    """Return the combination of some fields of `Policy`, as of `Combination.to_dict`."""
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Combination(tuple((name, plain[name]) for name in AXES if name in plain))


class Skipped(NamedTuple):
    """A combination that cannot be, and why."""

    combination: Combination
    reason: str


def parse_axis(text: str) -> tuple[str, tuple[Value, ...]]:
    """Read an axis as the command line has it: ``"decode_only_sms=0,8,16"``.

    Raises
    ------
    ValueError
        There is no such axis, or one of the values is none of it.
    """
    name, equals, values = text.partition("=")
    if not equals or not values.strip():
        raise ValueError(f"axis={text!r}: expected NAME=VALUE,VALUE such as decode_only_sms=0,8,16")
    return name.strip(), read_values(name.strip(), values.split(","))


def parse_axes(texts: Sequence[str]) -> dict[str, tuple[Value, ...]]:
    """Read several axes; raises as `parse_axis`, and where one is named twice."""
    axes = dict(map(parse_axis, texts))
    if len(axes) < len(texts):
        raise ValueError("axis: name each axis once, with all its values")
    return axes


def read_values(name: str, values: Iterable[Any]) -> tuple[Value, ...]:
    """Return an axis' values, each once; raises as `parse_axis`."""
    if name not in AXES:
        near = difflib.get_close_matches(name, AXES, n=3, cutoff=0.4) or list(AXES)
        raise ValueError(f"axis={name!r}: there is none of that name; try {', '.join(near)}")
    found: list[Value] = []
    for value in values:
        text = str(value).strip()
        try:
            found.append(None if text == UNFIXED and name != "family" else AXES[name](text))
        except ValueError as error:
            raise ValueError(f"axis {name}: {text!r}: {error}, or {UNFIXED!r}") from None
        _require_known(name, found[-1])
    return tuple(dict.fromkeys(found))


def _require_known(name: str, value: Value) -> None:
    """Refuse a value that no policy takes, whatever else is fixed; ValueError says what does."""
    if name == CTAS_PER_SM or value is None:
        return
    families = [value] if name == "family" else get_args(Family)
    reasons = []
    for family in families:
        try:
            Policy(**{name: value, "family": family})  # type: ignore[arg-type]
        except ValueError as error:
            reasons.append(str(error))
    if len(reasons) == len(families):
        unfixed = f"; None is written {UNFIXED!r}" if "None" in reasons[0] else ""
        raise ValueError(f"axis {reasons[0]}{unfixed}")


def combinations(axes: Mapping[str, Sequence[Value]]) -> tuple[list[Combination], list[Skipped]]:
    """Return the grid of axes, and apart from it what `Policy` refuses."""
    grid, skipped = [], []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        if CTAS_PER_SM in chosen:
            chosen["shape"] = chosen.pop(CTAS_PER_SM)
        one = Combination(tuple((n, chosen[n]) for n in AXES if chosen.get(n) is not None))
        try:
            one.policy()
        except (ValueError, TypeError) as error:
            skipped.append(Skipped(one, str(error)))
        else:
            grid.append(one)
    return list(dict.fromkeys(grid)), list(dict.fromkeys(skipped))


def sample(grid: Sequence[Combination], count: int, seed: int) -> list[Combination]:
    """Return some combinations at random, in the order of the grid; all where there are fewer."""
    if count >= len(grid):
        return list(grid)
    chosen = np.random.default_rng(seed).choice(len(grid), count, replace=False)
    return [grid[index] for index in sorted(chosen.tolist())]


def value_text(value: Value) -> str:
    """Return a value as `read_values` reads it."""
    if isinstance(value, tuple):
        return "{}:{}".format(*value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def natural(text: str) -> tuple[int, float, str]:
    """Return what orders the values of an axis: ratios and numbers by size, then words."""
    prefill, colon, decode = text.partition(":")
    if colon and prefill.isdecimal() and decode.isdecimal():
        return 0, int(decode) / int(prefill), text
    return (0, float(text), "") if text.isdecimal() else (1, 0.0, text)
