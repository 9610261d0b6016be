"""Pages in random order."""

from __future__ import annotations

import numpy as np

from podrt.workloads.pages import shuffled_pages


def test_pages_are_shuffled_and_owned_once() -> None:
    table, num_pages = shuffled_pages((33, 16, 1), 16, np.random.default_rng(0))
    assert num_pages == 3 + 1 + 1
    assert table.shape == (3, 3)
    owned = [*table[0, :3], table[1, 0], table[2, 0]]
    assert sorted(owned) == list(range(5))
    assert owned != sorted(owned)


def test_unused_entries_point_at_a_spare_page() -> None:
    table, num_pages = shuffled_pages((33, 16, 1), 16, np.random.default_rng(0), num_spare=2)
    owned = [*table[0, :3], table[1, 0], table[2, 0]]
    assert num_pages == 7 and len(set(owned)) == 5
    assert len({*table[1, 1:], *table[2, 1:]}) == 1
    assert table[1, 1] not in owned


def test_no_requests_are_no_pages() -> None:
    table, num_pages = shuffled_pages((), 16, np.random.default_rng(0))
    assert (table.shape, num_pages) == ((0, 0), 0)
