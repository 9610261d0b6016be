"""What windows of a batch are expected to be, beside the reference of the whole batch."""

from __future__ import annotations

import numpy as np
import pytest

from podrt.reference import reference_attention
from podrt.spec.attention import make_spec
from podrt.spec.batch import HybridBatch
from podrt.workloads.accuracy import Window, expected_of
from podrt.workloads.trees import random_trees

LENGTHS = ((5, 40), (1, 17), (90, 130), (33, 33))


class Host:
    """A batch in host memory."""

    lengths = LENGTHS

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        rows = sum(q_len for q_len, _ in LENGTHS)
        longest = max(kv_len for _, kv_len in LENGTHS)
        self.q = rng.standard_normal((rows, 4, 32))
        self.k, self.v = rng.standard_normal((2, len(LENGTHS), longest, 2, 32))

    def read_q(self, begin: int, end: int) -> np.ndarray:
        return self.q[begin:end]

    def read_kv(self, request: int, num_keys: int) -> tuple[np.ndarray, np.ndarray]:
        return self.k[request, :num_keys], self.v[request, :num_keys]


@pytest.mark.parametrize("window_left", [None, 9])
@pytest.mark.parametrize(("causal", "trees"), [(True, False), (False, False), (True, True)])
def test_windows_are_rows_of_the_whole_batch(
    causal: bool, trees: bool, window_left: int | None
) -> None:
    source, rng = Host(), np.random.default_rng(4)
    words = random_trees([q_len for q_len, _ in LENGTHS], rng) if trees else None
    layer = make_spec(
        4, 2, 32, None, "NHD", "float16", causal, window_left=window_left, tree_mask=trees
    )
    starts = np.cumsum([0, *(q_len for q_len, _ in LENGTHS)]).astype(np.int32)
    batch = HybridBatch.contiguous(starts, np.array([n for _, n in LENGTHS], np.int32))
    out, lse = reference_attention(
        source.q,
        source.k,
        source.v,
        batch,
        causal=causal,
        window_left=window_left,
        tree_mask=words,
    )
    windows = [Window(0, 1, 3), Window(2, 0, 90), Window(2, 80, 90), Window(3, 32, 33)]
    found = expected_of(source, windows, layer=layer, tree_mask=words)
    np.testing.assert_allclose(found.out, out[found.rows], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.lse, lse[found.rows], rtol=1e-12, atol=1e-12)


def test_tokens_of_a_tree_see_themselves_and_their_ancestors() -> None:
    q_lens = [1, 64, 7, 65]
    words = random_trees(q_lens, np.random.default_rng(0))
    assert words.dtype == np.uint64
    assert not words[-65:].any()  # more tokens than a tree may have
    begin = 0
    for q_len in q_lens[:3]:
        tree = [int(word) for word in words[begin : begin + q_len]]
        begin += q_len
        for token, word in enumerate(tree):
            seen = [other for other in range(64) if word >> other & 1]
            assert seen[-1] == token
            assert all(tree[other] & word == tree[other] for other in seen)
