"""The page on the contract names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "contract.md").read_text(encoding="utf-8")


def test_every_statement_names_tests_that_exist() -> None:
    defined = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]
    statements = [row for row in rows if not row.startswith("| what holds")]
    named = [set(re.findall(r"`(test_\w+)`", row)) for row in statements]
    assert len(statements) > 20
    assert all(named), statements[[bool(tests) for tests in named].index(False)]
    assert set.union(*named) <= defined, set.union(*named) - defined
