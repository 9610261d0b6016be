"""What the benchmark of shared prefixes measures, where no GPU is needed."""

from __future__ import annotations

import pytest

from podrt.bench.prefixes import CASES, SharedCase


def test_cases_are_read() -> None:
    shared = SharedCase.parse("64x16384/17000+1024@8192")
    assert shared == (64, 16384, 17000, (1024, 8192))
    assert shared.prefix == (1, 65, 16384)
    assert shared.case("x").lengths == ((1024, 8192), *[(1, 17000)] * 64)
    assert SharedCase.parse("2x16/17").prefix == (0, 2, 16)
    assert all(SharedCase.parse(case) for case in CASES)


def test_the_floor_reads_each_key_once() -> None:
    """16384 + 64 x 616 keys, 4 KiB each."""
    assert SharedCase.parse("64x16384/17000").floor_us == pytest.approx(74.9, abs=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("64", "expected requests x"), ("1x16/20", "two requests"), ("4x24/40", "whole pages of 16")],
)
def test_other_cases_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharedCase.parse(text)
