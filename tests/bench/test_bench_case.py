"""What a case asks of the hardware, with and without a window."""

from __future__ import annotations

import pytest

from podrt.bench.case import Case
from podrt.bench.expand import expand
from podrt.spec.mask import Mask


def case_of(prefill, decode=(), **scores) -> Case:
    return Case("c", 8, 2, 64, "bfloat16", 16, prefill, decode, **scores)


@pytest.mark.parametrize("window", [None, 0, 3, 16, 40, 1000])
@pytest.mark.parametrize("lengths", [(1, 1), (5, 5), (5, 30), (20, 30), (1, 30)])
def test_flops_and_bytes_are_of_the_keys_that_are_seen(window, lengths) -> None:
    q_len, kv_len = lengths
    seen = [
        set(range(*map(int, Mask(True, window).key_range(token, q_len, kv_len))))
        for token in range(q_len)
    ]
    case = case_of((lengths,), window_left=window)
    assert case.flops() == 4 * 8 * 64 * sum(map(len, seen))
    assert case.min_bytes() == 2 * 64 * (2 * q_len * 8 + 2 * len(set().union(*seen)) * 2)


def test_narrower_values_are_less_of_everything() -> None:
    like, unlike = case_of(((5, 30),), (70,)), case_of(((5, 30),), (70,), v_head_dim=32)
    assert unlike.spec().value_dim == 32
    assert (like.is_plain, unlike.is_plain) == (True, False)
    for whole, narrow in ((like.flops(), unlike.flops()), (like.min_bytes(), unlike.min_bytes())):
        assert 4 * narrow == 3 * whole
    assert Case.of(unlike.lengths, unlike.spec()).v_head_dim == 32
    entry = {"name": "e", "heads": [[8, 2]], "head_dims": [64], "v_head_dim": 32}
    (found,) = expand(
        "group", {**entry, "points": [{"prefill": [[5, 30]]}]}, full=False, trace_dir=None
    )
    assert (found.v_head_dim, found.name) == (32, "e/8-2 d64v32 contiguous/5@30")
    assert case_of(((5, 30),), (70,), v_head_dim=like.head_dim).is_plain


def test_an_entry_says_what_it_asks_of_scores() -> None:
    entry = {
        "name": "g",
        "heads": [[8, 2]],
        "page_sizes": [16],
        "window_left": 31,
        "logits_soft_cap": 50.0,
        "sinks": True,
        "points": [{"decode": {"requests": 2, "kv_len": 99}}],
    }
    (case,) = expand("group", entry, full=False, trace_dir=None)
    assert case.name == "g/8-2 d128 page16 window 31, cap 50, sinks/2x99"
    assert (case.window_left, case.logits_soft_cap, case.sinks) == (31, 50.0, True)
    assert not case.is_plain
    spec = case.spec()
    assert (spec.mask.window_left, spec.logits_soft_cap) == (31, 50.0)
