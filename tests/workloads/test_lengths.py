"""Batches as text."""

from __future__ import annotations

import pytest

from podrt.workloads.lengths import batch_of_lengths, describe_lengths, parse_lengths


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


@pytest.mark.parametrize("text", ["16", "2048@16384 + 64x8192", "3x7 + 2@5 + 2x2@6 + 7"])
def test_lengths_are_described_as_they_are_read(text):
    assert describe_lengths(parse_lengths(text)) == text


@pytest.mark.parametrize("page_size", [None, 16])
def test_a_batch_of_lengths(page_size):
    batch = batch_of_lengths([(3, 40), (1, 9)], page_size)
    assert batch.q_lens.tolist() == [3, 1]
    assert batch.kv_lens.tolist() == [40, 9]
    assert batch.page_size == page_size


@pytest.mark.parametrize(
    "text", ["99999999999", "1@2147483648", "1000001x5", "2x2147483647@2147483647"]
)
def test_a_batch_beyond_what_plans_hold_is_refused(text):
    with pytest.raises(ValueError, match=r"batch='.*': .*(is too much|more than 2147483647)"):
        parse_lengths(text)
