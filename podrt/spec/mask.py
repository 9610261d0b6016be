"""`Mask`: which keys a query token sees; planner, kernels' variants and reference share it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = int | npt.NDArray[Any]

#: Bits of a word of a tree mask: the most query tokens of a request that has a tree.
MOST_TREE_TOKENS = 64


@dataclass(frozen=True)
class Mask:
    """The keys that a token sees: a range, of which trees leave out some at the end.

    Attributes
    ----------
    causal : bool
        Bottom-right aligned: token t of a request stands at key ``kv_len - q_len + t``, and sees
        none behind that. Without it, the last key is the request's.
    window_left : int or None
        Keys before its own that a token sees; 0 leaves its own alone. None: from the first on.
    tree : bool
        Which of its request's new keys (the last ``q_len``) a token sees is for a word of bits to
        say, whatever the window, where it has a word that is not 0; for requests of at most
        `MOST_TREE_TOKENS` tokens.
    """

    causal: bool = True
    window_left: int | None = None
    tree: bool = False

    def key_range(self, tokens: Numbers, q_len: Numbers, kv_len: Numbers) -> tuple[Any, Any]:
        """Return the first key that tokens see, and one past the last.

        Parameters
        ----------
        tokens : whole numbers
            Which of the request's query tokens; more may be asked for than it has.
        q_len, kv_len : whole numbers
            Query tokens and keys of the request, or of each token's. Like `tokens` of any type that
            holds their sums.

        Returns
        -------
        begin, end : arrays of the type and shape that the arguments broadcast to
            ``0 <= begin <= end <= kv_len``; equal where nothing is seen. Of a tree, with all of
            its new keys.
        """
        end = self.key_end(tokens, q_len, kv_len)
        if self.window_left is None:
            return np.zeros(end.shape, end.dtype), end
        return np.minimum(self.key_begin(tokens, q_len, kv_len), end), end

    def key_begin(self, tokens: Numbers, q_len: Numbers, kv_len: Numbers) -> Any:
        """Return the first key that tokens see; of those that see none a key that others may."""
        if self.window_left is None:
            return np.zeros_like(tokens + (kv_len - q_len))
        back = tokens - self.window_left
        if self.tree:
            back = np.where(self.may_have_tree(q_len), np.minimum(back, 0), back)
        return np.maximum(back + (kv_len - q_len), 0)

    def key_end(self, tokens: Numbers, q_len: Numbers, kv_len: Numbers) -> Any:
        """Return one past the last key that tokens see, as `key_range` does."""
        if not self.causal:
            return kv_len + np.zeros_like(tokens)
        end = np.minimum(np.maximum(tokens + (kv_len - q_len + 1), 0), kv_len)
        return np.where(self.may_have_tree(q_len), kv_len, end) if self.tree else end

    def within(self, max_kv_len: int) -> Mask:
        """Return what it hides of requests of at most so many keys: a longer window nothing."""
        if self.window_left is None or self.window_left + 1 < max_kv_len:
            return self
        return replace(self, window_left=None)

    def may_have_tree(self, q_len: Numbers) -> Any:
        """Tell whether requests of so many tokens may have a tree."""
        return q_len <= MOST_TREE_TOKENS if self.tree else np.zeros(np.shape(q_len), bool)

    def seen_keys(self, q_len: Numbers, kv_len: Numbers) -> Any:
        """Return how many keys lie between the first and the last that a request's tokens see."""
        return kv_len - np.minimum(self.key_begin(np.zeros_like(q_len), q_len, kv_len), kv_len)

    def sees(
        self,
        tokens: npt.ArrayLike,
        keys: npt.ArrayLike,
        q_len: int,
        kv_len: int,
        words: npt.NDArray[np.uint64] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Tell which of some keys which of some tokens of a request see, ``[tokens, keys]``.

        `words` ``[q_len]`` are the request's rows of a tree mask: bit j is whether a token sees the
        j-th new key. A token whose word is 0, or all with None, are as without a tree: they see
        those up to their own that no window hides.
        """
        tokens, keys = np.asarray(tokens, np.int64), np.asarray(keys, np.int64)
        begin, end = self.key_range(tokens, q_len, kv_len)
        seen: npt.NDArray[np.bool_] = (keys >= begin[:, None]) & (keys < end[:, None])
        if self.tree and self.may_have_tree(q_len):
            new = keys - (kv_len - q_len)
            seen &= (new < 0) | _bits(self._words_of(tokens, words), new)
        return seen

    def _words_of(
        self, tokens: npt.NDArray[np.int64], words: npt.NDArray[np.uint64] | None
    ) -> npt.NDArray[np.uint64]:
        """Return the words of tokens of a request; in place of 0, what those without a tree see."""
        number, most = tokens.astype(np.uint64), np.uint64(2**64 - 1)
        plain = most >> (np.uint64(MOST_TREE_TOKENS - 1) - number)
        if self.window_left is not None:
            plain &= most << np.maximum(tokens - self.window_left, 0).astype(np.uint64)
        if words is None:
            return plain
        return np.where(words[tokens] == 0, plain, words[tokens])


def _bits(words: npt.NDArray[np.uint64], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return bits of some numbers of all words, ``[words, numbers]``; False beyond a word."""
    inside = (numbers >= 0) & (numbers < MOST_TREE_TOKENS)
    shifts = np.where(inside, numbers, 0).astype(np.uint64)
    bits: npt.NDArray[np.bool_] = (words[:, None] >> shifts & np.uint64(1)) == 1
    return bits & inside
