"""Reads the README for its tests."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def python_examples() -> list[str]:
    """Return the Python blocks of the README, which go on from each other."""
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)
