"""Which keys a token sees."""

from __future__ import annotations

import numpy as np
import pytest

from podrt.spec.mask import Mask

LENGTHS = [(1, 1), (1, 7), (4, 4), (3, 9), (5, 2), (3, 0)]


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_a_causal_mask_ends_with_the_last_token_at_the_last_key(q_len: int, kv_len: int) -> None:
    begin, end = Mask(causal=True).key_range(np.arange(q_len), q_len, kv_len)
    assert not begin.any()
    assert end.tolist() == [max(0, kv_len - q_len + token + 1) for token in range(q_len)]
    assert end[-1] == kv_len


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_without_a_mask_every_token_sees_every_key(q_len: int, kv_len: int) -> None:
    begin, end = Mask(causal=False).key_range(np.arange(q_len), q_len, kv_len)
    assert not begin.any()
    assert end.tolist() == [kv_len] * q_len


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window_left", [0, 1, 3, 100])
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_a_window_begins_so_many_keys_before_a_token(
    q_len: int, kv_len: int, window_left: int, causal: bool
) -> None:
    tokens = np.arange(q_len)
    begin, end = Mask(causal, window_left).key_range(tokens, q_len, kv_len)
    assert end.tolist() == Mask(causal).key_end(tokens, q_len, kv_len).tolist()
    own = kv_len - q_len + tokens
    expected = np.minimum(np.maximum(own - window_left, 0), end)
    assert begin.tolist() == expected.tolist()
    if causal:
        assert ((end - begin)[own >= 0] <= window_left + 1).all()


def test_a_window_of_nothing_leaves_a_token_its_own_key() -> None:
    assert Mask(True, 0).sees(np.arange(2), np.arange(4), 2, 4).tolist() == [
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_tokens_beyond_the_request_see_no_key_that_it_lacks() -> None:
    assert Mask(causal=True).key_range(8, 3, 9)[1] == 9


def test_lengths_may_be_those_of_several_requests() -> None:
    _, end = Mask(causal=True).key_range(np.array([0, 1]), np.array([2, 2]), np.array([7, 2]))
    assert end.tolist() == [6, 2]


@pytest.mark.parametrize("causal", [True, False])
def test_where_the_keys_end_may_be_asked_alone(causal: bool) -> None:
    mask, tokens = Mask(causal), np.arange(4)
    assert mask.key_end(tokens, 3, 6).tolist() == mask.key_range(tokens, 3, 6)[1].tolist()


@pytest.mark.parametrize("causal", [True, False])
def test_sees_is_the_range_by_key(causal: bool) -> None:
    mask, keys = Mask(causal), np.arange(2, 6)
    seen = mask.sees(np.arange(3), keys, 3, 6)
    begin, end = mask.key_range(np.arange(3), 3, 6)
    pairs = zip(begin, end, strict=True)
    expected = [[first <= key < last for key in keys] for first, last in pairs]
    assert seen.tolist() == expected


@pytest.mark.parametrize("window_left", [None, 0, 3, 100])
@pytest.mark.parametrize("lengths", [(1, 9), (4, 9), (9, 4), (1, 0)])
def test_seen_keys_are_those_from_the_first_to_the_last_that_any_token_sees(
    window_left: int | None, lengths: tuple[int, int]
) -> None:
    mask = Mask(window_left=window_left)
    begin, end = mask.key_range(np.arange(lengths[0]), *lengths)
    expected = max(end.max() - min(begin[0], end.max()), 0)
    assert mask.seen_keys(*lengths) == expected
