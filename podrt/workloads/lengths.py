"""Batches as text: ``2048@16384 + 64x16384``."""

from __future__ import annotations

import re

#: ``[count x] q_len @ kv_len`` or ``count x kv_len``, spaces as one likes.
_PART = re.compile(r"(?:(\d+)\s*x\s*)?(?:(\d+)\s*@\s*)?(\d+)")


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
        It is not of that form, or a chunk is longer than its context.
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
        lengths += [(q_len, kv_len)] * count
    return lengths
