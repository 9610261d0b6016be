"""Read SASS: instructions of a kernel, and its loops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?(.*?)\s*;")
_BRANCH = re.compile(r"BRA.*`\((\.L_x_\d+)\)")


def loops(sass: str) -> Iterator[list[str]]:
    """Yield the instructions of every loop, without predicates: from a label to a branch back."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.match(line):
            instructions.append(instruction[1])
    for end, instruction in enumerate(instructions):
        branch = _BRANCH.match(instruction)
        if branch and labels.get(branch[1], end + 1) <= end:
            yield instructions[labels[branch[1]] : end + 1]


def count(instructions: Sequence[str], start: str) -> int:
    """Return how many instructions begin with `start`."""
    return sum(instruction.startswith(start) for instruction in instructions)


def between(instructions: Sequence[str], first: str, last: str) -> list[str]:
    """Return the instructions after the one that has `first` and before the next with `last`."""
    begin = next(n for n, text in enumerate(instructions) if first in text) + 1
    end = next(n for n in range(begin, len(instructions)) if last in instructions[n])
    return list(instructions[begin:end])
