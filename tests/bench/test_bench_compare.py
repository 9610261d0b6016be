"""What counts as a change between two results files."""

from __future__ import annotations

import pytest
from bench_support import make_case, make_results, make_rows

from podrt.bench.compare import compare, comparison_lines

CASE = make_case()


def verdict(before_us, after_us, spread=0.001):
    before, after = (
        make_results(make_rows(CASE, {"auto": us}, spread=spread)) for us in (before_us, after_us)
    )
    (change,) = compare(before, after).changes
    return change.verdict


@pytest.mark.parametrize(
    ("before_us", "after_us", "expected"),
    [
        (100.0, 90.0, "faster"),
        (100.0, 110.0, "slower"),
        (100.0, 100.9, "same"),
        (100.0, None, "now fails"),
        (None, 100.0, "now works"),
        (None, None, "same"),
    ],
)
def test_verdicts(before_us, after_us, expected):
    assert verdict(before_us, after_us) == expected


def test_a_difference_within_the_spread_of_the_samples_is_noise():
    assert verdict(100.0, 104.0, spread=0.05) == "same"
    assert verdict(100.0, 104.0, spread=0.01) == "slower"


def test_rows_and_environments_that_differ_are_told():
    before = make_results(make_rows(CASE, {"auto": 100.0, "1:8": 90.0}))
    after = make_results(
        make_rows(CASE, {"auto": 80.0}), make_rows(make_case("x"), {"auto": 1.0}), driver="590.2"
    )
    comparison = compare(before, after)
    assert (comparison.only_before, comparison.only_after) == (1, 1)
    assert comparison.environment == {"driver": ("580.1", "590.2")}
    text = "\n".join(comparison_lines(comparison))
    assert "580.1 -> 590.2" in text
    assert "auto: after / before geomean 0.800 over 1 cases" in text
