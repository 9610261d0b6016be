"""Batches as text."""

from __future__ import annotations

import pytest

from podrt.workloads.lengths import parse_lengths


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("2048@16384 + 3x100", [(2048, 16384), (1, 100), (1, 100), (1, 100)]),
        ("2 x 512 @ 4096+7", [(512, 4096), (512, 4096), (1, 7)]),
        ("16384", [(1, 16384)]),
    ],
)
def test_reads_chunks_and_decodes(text: str, lengths: list[tuple[int, int]]) -> None:
    assert parse_lengths(text) == lengths


def test_none_of_something_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        parse_lengths("16 + 0x5")


@pytest.mark.parametrize("text", ["", "2048@", "a", "1@2@3", "64x", "-1@5", "5 5", "2048@16384 +"])
def test_names_what_it_cannot_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"batch=.*write \"2048@16384 \+ 64x16384\""):
        parse_lengths(text)


@pytest.mark.parametrize("text", ["2048@1024", "0@5", "0", "4 x 9@8"])
def test_a_chunk_is_part_of_its_keys(text: str) -> None:
    with pytest.raises(ValueError, match="1 <= tokens <= keys"):
        parse_lengths(text)
