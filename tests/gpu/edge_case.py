"""One large batch whose lengths lie around every edge of the kernels' tiles and steps.

All requests have the same first keys, in shared pages, so that thousands of lengths cost little
memory. A request's last page is its own, with NaN after its last key.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from attention_case import LOG2_E, NO_PAGE, Case

#: Keys of a tile or step: of the portable kernel and of Hopper's prefill and decode.
STEPS = (64, 112, 128, 176)
#: Beyond these multiples, the smallest that several steps have in common.
FAR = (1280, 1792)
LONGEST_EDGE = 896
DECODE_Q_LENS = range(1, 9)
PREFILL_Q_LENS = (17, 65, 130)

#: Scores in base 2 by position, beside random ones. All queries look at one of these.
PROFILES = (
    lambda position: np.zeros(len(position)),
    lambda position: np.full(len(position), -45.0),
    lambda position: 7.9 + 2.3 * position / len(position),  # grows less than is worth a rescale
    lambda position: -45 + 105 * position / len(position),
    lambda position: 60 - 105 * position / len(position),
    lambda position: 9.0 * (position // 128),
)
_QUERY = 8.0  # of the one element that a profile has to itself
_SPARE_PAGES = 5


def edges():
    multiples = {step * n for step in STEPS for n in range(1, LONGEST_EDGE // step + 1)}
    return sorted(multiples | set(FAR))


def edge_lengths(q_lens=DECODE_Q_LENS, prefill_q_lens=PREFILL_Q_LENS):
    """Return [(q_len, kv_len)]: the last, or the first, token's last key lies at an edge."""
    lengths = {
        (q_len, kv_len)
        for edge, q_len in product(edges(), q_lens)
        for kv_len in (edge - q_len, edge - 1, edge, edge + q_len - 1, edge + q_len)
    } | {
        (q_len, kv_len)
        for edge, q_len in product(edges(), prefill_q_lens)
        for kv_len in (edge - 1, edge, edge + 1, edge + q_len - 1)
        if edge % 128 == 0 or edge % 112 == 0
    }
    return sorted((q_len, kv_len) for q_len, kv_len in lengths if q_len <= kv_len)


@dataclass
class EdgeCase(Case):
    """A batch of `edge_lengths`, in random order."""

    def __post_init__(self):
        lengths = list(zip(self.q_lens, self.kv_lens, strict=True))
        order = np.random.default_rng(self.seed).permutation(len(lengths))
        self.q_lens, self.kv_lens = (
            list(x) for x in zip(*(lengths[i] for i in order), strict=True)
        )
        rng = np.random.default_rng(self.seed)
        self._pool = self._round(self._shared_keys(rng, max(self.kv_lens)))
        self._nan = self._round(np.full(self._row, np.nan))
        tokens = sum(self.q_lens)
        q = rng.standard_normal((tokens, self.num_qo_heads, self.head_dim), np.float32)
        q *= rng.choice([0.05, 1.0, 4.0], size=(tokens, self.num_qo_heads, 1))
        q[..., : len(PROFILES)] = 0
        chosen = rng.integers(0, len(PROFILES), size=(tokens, self.num_qo_heads))
        np.put_along_axis(q, chosen[..., None], _QUERY, axis=2)
        self.q = self._round(q)
        if self.page_size is None:
            self._fill_contiguous(rng)
        else:
            self._fill_pages(rng)

    def _shared_keys(self, rng, length):
        pool = rng.standard_normal((2, length, *self._row), np.float32)
        for element, profile in enumerate(PROFILES):
            scores = profile(np.arange(length))
            pool[0, :, :, element] = (scores / (_QUERY * self.scale * LOG2_E))[:, None]
        return pool

    def _fill_contiguous(self, rng):
        shape = (len(self.kv_lens), max(self.kv_lens) + 3, *self._row)
        caches = np.broadcast_to(self._nan, (2, *shape)).copy()
        for request, length in enumerate(self.kv_lens):
            caches[:, request, :length] = self._pool[:, :length]
        self.k_cache, self.v_cache = caches

    def _fill_pages(self, rng):
        size, longest = self.page_size, max(self.kv_lens)
        shared = longest // size
        numbers = rng.permutation(shared + len(self.kv_lens) + _SPARE_PAGES)
        caches = np.broadcast_to(self._nan, (2, len(numbers), size, *self._row)).copy()
        full = self._pool[:, : shared * size]
        caches[:, numbers[:shared]] = full.reshape(2, shared, size, *self._row)
        self.block_table = np.full((len(self.kv_lens), -(-longest // size) + 2), NO_PAGE, np.int32)
        for request, length in enumerate(self.kv_lens):
            whole, rest = divmod(length, size)
            self.block_table[request, :whole] = numbers[:whole]
            if rest:
                own = numbers[shared + request]
                caches[:, own, :rest] = self._pool[:, whole * size : length]
                self.block_table[request, whole] = own
        self.k_cache, self.v_cache = caches
