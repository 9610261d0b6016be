"""Reads the README and the pages of docs/, for their tests.

A fenced block is run by the tests, unless the line before it says what it needs beyond a machine
without a GPU: ``<!-- needs a GPU -->``. A block behind ``<!-- file NAME -->`` is that file. In one
behind ``<!-- numbers vary with the compiler -->`` any number may be printed for a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Pages on podrt itself; those on its hosts have commands and options of others.
_OF_HOSTS = ("vllm", "transformers", "torch", "jax")

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>needs|file|numbers) (?P<of>.+?) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes
    ----------
    language : str
    text : str
    needs : str or None
        What it needs that tests without a GPU do not have.
    file : str or None
        The file that it is.
    numbers : str or None
        Why numbers are others elsewhere.
    """

    language: str
    text: str
    needs: str | None = None
    file: str | None = None
    numbers: str | None = None


def page_names() -> list[str]:
    """Return the README and all pages of docs/, relative to the repository."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    return ["README.md", *(page.relative_to(ROOT).as_posix() for page in pages)]


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    return [
        Block(match["language"], match["text"], **{match["mark"] or "needs": match["of"]})
        for match in _BLOCK.finditer(read(page))
    ]


def python_examples(page: str = "README.md") -> list[str]:
    """Return the Python blocks of a page, whatever they need; they go on from each other."""
    return [block.text for block in blocks(page) if block.language == "python"]


README = read("README.md")
#: README and the pages on podrt itself, which share out what there is to say.
GUIDE = "\n".join(read(page) for page in page_names() if Path(page).stem not in _OF_HOSTS)
