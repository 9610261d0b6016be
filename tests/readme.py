"""Reads the README, and pages of docs/, for their tests."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
README = (_ROOT / "README.md").read_text(encoding="utf-8")


def python_examples(page: str = "README.md") -> list[str]:
    """Return the Python blocks of a page, which go on from each other."""
    text = (_ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
