"""`Mask`: which keys a query token sees; planner, kernels' variants and reference share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mask:
    """The keys that a token sees, which are a range whatever the mask.

    Attributes
    ----------
    causal : bool
        Bottom-right aligned: token t of a request sees keys 0 to ``kv_len - q_len + t``. Without
        it, all ``kv_len``.
    """

    causal: bool = True

    def key_range(
        self, tokens: npt.ArrayLike, q_len: npt.ArrayLike, kv_len: npt.ArrayLike
    ) -> tuple[Ints, Ints]:
        """Return the first key that tokens see, and one past the last.

        Parameters
        ----------
        tokens : ints
            Which of the request's query tokens; more may be asked for than it has.
        q_len, kv_len : ints
            Query tokens and keys of the request, or of each token's.

        Returns
        -------
        begin, end : int64 arrays, of the shape that the arguments broadcast to
            ``0 <= begin <= end <= kv_len``; equal where nothing is seen.
        """
        tokens, q_len, kv_len = np.broadcast_arrays(
            *(np.asarray(values, np.int64) for values in (tokens, q_len, kv_len))
        )
        end = kv_len
        if self.causal:
            end = np.clip(kv_len - q_len + tokens + 1, 0, kv_len)
        return np.zeros_like(end), end

    def sees(
        self, tokens: npt.ArrayLike, keys: npt.ArrayLike, q_len: int, kv_len: int
    ) -> npt.NDArray[np.bool_]:
        """Tell which of some keys which of some tokens of a request see, ``[tokens, keys]``."""
        begin, end = self.key_range(tokens, q_len, kv_len)
        keys = np.asarray(keys)
        seen: npt.NDArray[np.bool_] = (keys >= begin[:, None]) & (keys < end[:, None])
        return seen
