"""`Mask`: which keys a query token sees; planner, kernels' variants and reference share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = int | npt.NDArray[Any]


@dataclass(frozen=True)
class Mask:
    """The keys that a token sees, which are a range whatever the mask.

    Attributes
    ----------
    causal : bool
        Bottom-right aligned: token t of a request stands at key ``kv_len - q_len + t``, and sees
        none behind that. Without it, the last key is the request's.
    window_left : int or None
        Keys before its own that a token sees; 0 leaves its own alone. None: from the first on.
    """

    causal: bool = True
    window_left: int | None = None

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
            ``0 <= begin <= end <= kv_len``; equal where nothing is seen.
        """
        end = self.key_end(tokens, q_len, kv_len)
        if self.window_left is None:
            return np.zeros(end.shape, end.dtype), end
        return np.minimum(self.key_begin(tokens, q_len, kv_len), end), end

    def key_begin(self, tokens: Numbers, q_len: Numbers, kv_len: Numbers) -> Any:
        """Return the first key that tokens see; of those that see none a key that others may."""
        if self.window_left is None:
            return np.zeros_like(tokens + (kv_len - q_len))
        return np.maximum(tokens + (kv_len - q_len - self.window_left), 0)

    def key_end(self, tokens: Numbers, q_len: Numbers, kv_len: Numbers) -> Any:
        """Return one past the last key that tokens see, as `key_range` does."""
        if self.causal:
            return np.minimum(np.maximum(tokens + (kv_len - q_len + 1), 0), kv_len)
        return kv_len + np.zeros_like(tokens)

    def seen_keys(self, q_len: Numbers, kv_len: Numbers) -> Any:
        """Return how many keys lie between the first and the last that a request's tokens see."""
        return kv_len - np.minimum(self.key_begin(np.zeros_like(q_len), q_len, kv_len), kv_len)

    def sees(
        self, tokens: npt.ArrayLike, keys: npt.ArrayLike, q_len: int, kv_len: int
    ) -> npt.NDArray[np.bool_]:
        """Tell which of some keys which of some tokens of a request see, ``[tokens, keys]``."""
        begin, end = self.key_range(np.asarray(tokens, np.int64), q_len, kv_len)
        keys = np.asarray(keys)
        seen: npt.NDArray[np.bool_] = (keys >= begin[:, None]) & (keys < end[:, None])
        return seen
