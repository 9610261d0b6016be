"""`QueryLengths`: the query tokens of every request of a batch, and what follows from them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


class QueryLengths:
    """Query tokens of every request of a batch, and what follows from them alone.

    A server's next batch often has those of the last one, and then has the same object.

    Attributes
    ----------
    qo_indptr : int32 array [requests + 1]
        Request i owns rows ``qo_indptr[i]`` to ``qo_indptr[i + 1]`` of q. Read-only. Of a batch
        with prefixes, the requests without those.
    q_lens : int32 array [requests]
        Query tokens of every request. Read-only.
    q_begin : int32 array [requests]
        First row of every request in q. Read-only.
    total_tokens : int
        Query tokens of the batch, the rows of q.
    min_q_len, max_q_len : int
        Query tokens of the requests with fewest and most; 0 in an empty batch.
    derived : dict
        What others have made of them, by what it was made for: to be looked up, not changed.
    """

    __slots__ = (
        "__weakref__",
        "_above",
        "derived",
        "max_q_len",
        "min_q_len",
        "q_begin",
        "q_lens",
        "qo_indptr",
        "total_tokens",
    )

    def __init__(
        self,
        qo_indptr: Int32Array,
        q_lens: Int32Array,
        min_q_len: int,
        q_begin: Int32Array | None = None,
    ) -> None:
        self.qo_indptr, self.q_lens, self.min_q_len = qo_indptr, q_lens, min_q_len
        self.q_begin = qo_indptr[:-1] if q_begin is None else q_begin
        self.total_tokens = qo_indptr.item(-1)
        self.max_q_len = q_lens.item(q_lens.argmax()) if len(q_lens) else 0
        self.derived: dict[Hashable, Any] = {}
        self._above: dict[int, npt.NDArray[np.intp]] = {}

    def above(self, tokens: int) -> npt.NDArray[np.intp]:
        """Return the requests that have more than so many query tokens, ascending."""
        found = self._above.get(tokens)
        if found is None:
            found = self._above[tokens] = (self.q_lens > tokens).nonzero()[0]
        return found

    def num_above(self, tokens: int) -> int:
        """Return how many they are."""
        if tokens < self.min_q_len:
            return len(self.q_lens)
        return len(self.above(tokens)) if tokens < self.max_q_len else 0
