"""Oracle and co-run floor."""

from __future__ import annotations

import pytest

from podrt.bench.floors import co_run_floor_us, fastest, oracle_us


@pytest.mark.parametrize(
    ("prefill_us", "decode_us", "floor_us"),
    [  # measured sides and their published floors
        (57, 191, 193),
        (366, 1421, 1436),
        (713, 1659, 1687),
        (697, 1415, 1443),
        (191, 192, 237),
        (3070, 1420, 3441),
        (100, 100, 124),
        (100, 0, 100),
    ],
)
def test_floor_of_measured_sides(prefill_us, decode_us, floor_us):
    assert co_run_floor_us(prefill_us, decode_us) == pytest.approx(floor_us, abs=1)


def test_oracle_is_the_longer_side():
    assert oracle_us(3.0, 5.0) == 5.0
    assert oracle_us(None, 5.0) == 5.0
    assert oracle_us(None, None) is None


def test_a_batch_of_one_side_has_no_cost_of_sharing():
    assert co_run_floor_us(7.0, None) == 7.0
    assert co_run_floor_us(None, None) is None


def test_fastest_ignores_failures():
    assert fastest([None, 3.0, 2.0]) == 2.0
    assert fastest([None]) is None
