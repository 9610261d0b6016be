"""Random trees of drafted tokens, as `HybridAttention.plan` takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from podrt.spec.mask import MOST_TREE_TOKENS

Words = npt.NDArray[np.uint64]


def random_trees(q_lens: Sequence[int], rng: np.random.Generator) -> Words:
    """Return the words of a batch: each token sees itself and its ancestors.

    Parameters
    ----------
    q_lens : sequence of int
        Query tokens of every request. Those with more than a tree may have get words of 0.
    rng : numpy.random.Generator

    Returns
    -------
    uint64 array [total tokens]
    """
    words: list[int] = []
    for q_len in q_lens:
        words += _tree(q_len, rng) if q_len <= MOST_TREE_TOKENS else [0] * q_len
    return np.array(words, np.uint64)


def _tree(num_tokens: int, rng: np.random.Generator) -> list[int]:
    words: list[int] = []
    for token in range(num_tokens):
        parent = int(rng.integers(-1, token))  # -1: one of the roots
        words.append((words[parent] if parent >= 0 else 0) | 1 << token)
    return words
