"""Trees of speculative tokens as words of bits, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from podrt.spec.mask import MOST_TREE_TOKENS

Words = npt.NDArray[np.uint64]


def packed(mask: npt.NDArray[np.bool_]) -> Words:
    """Return a word for each row of a mask ``[q_len, q_len]``."""
    bits = np.uint64(1) << np.arange(len(mask), dtype=np.uint64)
    words: Words = np.where(mask, bits, np.uint64(0)).sum(1, dtype=np.uint64)
    return words


def random_tree(rng: np.random.Generator, q_len: int) -> npt.NDArray[np.bool_]:
    """Return which tokens are ancestors of each, itself included, ``[q_len, q_len]``."""
    sees = np.eye(q_len, dtype=bool)
    for token in range(1, q_len):
        sees[token] |= sees[rng.integers(0, token)]
    return sees


def random_mask(rng: np.random.Generator, q_len: int) -> npt.NDArray[np.bool_]:
    """Return a mask of no order: tokens may see later ones, and not themselves."""
    return rng.random((q_len, q_len)) < rng.choice([0.1, 0.5, 0.9])


def random_words(rng: np.random.Generator, q_lens: Sequence[int]) -> Words:
    """Return the words of a batch: trees, any masks, and requests or tokens without one."""
    words = np.zeros(sum(q_lens), np.uint64)
    begin = 0
    for q_len in q_lens:
        kind = rng.random()
        if q_len <= MOST_TREE_TOKENS and kind > 0.15:
            make = random_tree if kind < 0.6 else random_mask
            words[begin : begin + q_len] = packed(make(rng, q_len))
        begin += q_len
    return words
