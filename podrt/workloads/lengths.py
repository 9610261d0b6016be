"""Batches as lengths, and as text: ``2048@16384 + 64x16384``; heads ``32/8``, and page sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from podrt.spec.batch import HybridBatch

#: ``[count x] q_len @ kv_len`` or ``count x kv_len``, spaces as one likes.
_PART = re.compile(r"(?:(\d+)\s*x\s*)?(?:(\d+)\s*@\s*)?(\d+)")

#: Requests of a batch, and its query tokens or the keys of one: plans hold them as int32.
_MOST_REQUESTS, _MOST_TOKENS = 1_000_000, 2**31 - 1


def parse_lengths(text: str) -> list[tuple[int, int]]:
    """Return ``(q_len, kv_len)`` of the requests of a batch.

    Parameters
    ----------
    text : str
        Requests with a ``+`` between them: ``2048@16384`` is a chunk of 2048 tokens that ends a
        context of 16384, ``16384`` a decode, and ``64x`` in front of either means 64 of them.

    Raises
    ------
    ValueError
        It is not of that form, a chunk is longer than its context, or it is too large to be.
    """
    lengths: list[tuple[int, int]] = []
    for part in text.split("+"):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise ValueError(
                f"batch={text!r}: {part.strip()!r} is not a part of one; write "
                '"2048@16384 + 64x16384" for a chunk of 2048 tokens that ends a context of 16384 '
                "beside 64 decodes of 16384 keys"
            )
        count, q_len, kv_len = (int(number or 1) for number in found.groups())
        if count < 1:
            raise ValueError(f"batch={text!r}: {part.strip()!r} must be at least 1 request")
        if not 1 <= q_len <= kv_len:
            raise ValueError(
                f"batch={text!r}: {part.strip()!r} must have 1 <= tokens <= keys; the keys count "
                "the chunk's own"
            )
        if len(lengths) + count > _MOST_REQUESTS or kv_len > _MOST_TOKENS:
            raise ValueError(
                f"batch={text!r}: {part.strip()!r} is too much; a batch has at most "
                f"{_MOST_REQUESTS} requests, of {_MOST_TOKENS} keys"
            )
        lengths += [(q_len, kv_len)] * count
    if sum(q_len for q_len, _ in lengths) > _MOST_TOKENS:
        raise ValueError(f"batch={text!r}: has more than {_MOST_TOKENS} query tokens")
    return lengths


def describe_lengths(lengths: Sequence[tuple[int, int]]) -> str:
    """Return the text that `parse_lengths` reads as these lengths."""
    parts = []
    for (q_len, kv_len), group in groupby(lengths):
        count = len(list(group))
        one = str(kv_len) if q_len == 1 else f"{q_len}@{kv_len}"
        parts.append(one if count == 1 else f"{count}x{one}")
    return " + ".join(parts)


def batch_of_lengths(lengths: Sequence[tuple[int, int]], page_size: int | None) -> HybridBatch:
    """Return the batch of ``(q_len, kv_len)`` pairs, whose pages lie anywhere.

    Parameters
    ----------
    lengths : sequence of (q_len, kv_len)
        At least one.
    page_size : int or None
        Tokens of a page; None for a contiguous cache.
    """
    q_lens, kv_lens = (np.array(each, np.int32) for each in zip(*lengths, strict=True))
    qo_indptr = np.concatenate(([0], q_lens.cumsum())).astype(np.int32)
    if page_size is None:
        return HybridBatch.contiguous(qo_indptr, kv_lens)
    pages = -(-int(kv_lens.max()) // page_size)
    return HybridBatch.from_block_table(
        qo_indptr, kv_lens, shape=(len(kv_lens), pages), row_stride=pages, page_size=page_size
    )


def parse_heads(text: str) -> tuple[int, int]:
    """Read query and KV heads, such as ``32/8``; ValueError if that is not what it is."""
    qo, slash, kv = text.partition("/")
    if not (slash and qo.isdecimal() and kv.isdecimal()):
        raise ValueError(f"heads={text!r}: expected query and KV heads, such as 32/8")
    return int(qo), int(kv)


def parse_page_size(text: str) -> int | None:
    """Read ``--page-size``: tokens of a page, or ``none`` or ``0``, None, for a contiguous cache.

    Raises
    ------
    ValueError
        It is something else.
    """
    stated = text.strip().lower()
    if stated == "none":
        return None
    if not stated.isdecimal():
        raise ValueError(
            f"page-size={text!r}: expected tokens of a page, or none or 0 for a contiguous cache"
        )
    return int(stated) or None


def parse_paged(text: str, user: str) -> int:
    """Read ``--page-size`` as `parse_page_size`, but for a user whose cache is always paged."""
    page_size = parse_page_size(text)
    if page_size is None:
        raise ValueError(
            f"page-size={text!r}: {user} has a paged cache; pass the tokens of a page, such as 16"
        )
    return page_size
