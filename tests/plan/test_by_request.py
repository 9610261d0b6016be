"""Plans that cut each request by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_support import tiling_of
from spec_support import spec_of

from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.portable.presets import variant
from podrt.plan import Plan, RequestCuts, Tiling, WorkList, make_plan
from podrt.plan.by_request import cut_decode_by_request, cut_prefill_by_request
from podrt.plan.tiles import Tiles
from podrt.reference import check_plan
from podrt.spec.batch import HybridBatch

Request = tuple[int, int]  # query tokens and keys

#: What an item has of its request, whatever else is in the batch.
_OWN = ["q_len", "kv_len", "row_begin", "kv_begin", "kv_end", "split", "num_splits"]


def batch_of(requests: list[Request]) -> HybridBatch:
    q_lens, kv_lens = zip(*requests, strict=True)
    return HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )


def items_of(plan: Plan, request: int) -> list[list[tuple[int, ...]]]:
    """The items of a request on either side, in an order of their own."""

    def own(items: WorkList) -> list[tuple[int, ...]]:
        mine = items[items["request"] == request]
        return sorted(tuple(int(item[name]) for name in _OWN) for item in mine)

    return [own(plan.prefill), own(plan.decode)]


def tiling(family: str, rows: int, num_sms: int, group: int, **cuts: Any) -> Tiling:
    if family == "hopper":
        config: Any = hopper_variant("pod", "bfloat16", 128, decode_rows=rows)
    else:
        config = variant("pod", "sm_90a", "bfloat16", 128)
    return replace(tiling_of(config, num_sms, group), request_cuts=RequestCuts(**cuts))


lengths = st.one_of(st.integers(0, 300), st.integers(0, 100_000), st.sampled_from([128, 8192]))
requests = st.tuples(st.one_of(st.integers(0, 9), st.integers(0, 2500)), lengths)


@settings(deadline=None, max_examples=300)
@given(
    batch=st.lists(requests, min_size=1, max_size=12),
    family=st.sampled_from(["hopper", "portable"]),
    rows=st.sampled_from([8, 16, 32]),
    heads=st.sampled_from([1, 3, 8]),
    group=st.sampled_from([1, 4, 7, 20]),
    causal=st.booleans(),
    window_left=st.sampled_from([None, None, 0, 100, 4096]),
    piece_keys=st.sampled_from([None, 128, 2048]),
    sms=st.tuples(*[st.sampled_from([1, 66, 132])] * 2),
)
def test_items_of_a_request_are_the_same_in_any_batch(
    batch: list[Request],
    family: str,
    rows: int,
    heads: int,
    group: int,
    causal: bool,
    window_left: int | None,
    piece_keys: int | None,
    sms: tuple[int, int],
) -> None:
    spec = spec_of(heads, group, causal, window_left=window_left)
    cuts = {"decode_piece_keys": piece_keys}
    together = make_plan(batch_of(batch), tiling(family, rows, sms[0], group, **cuts), spec)
    check_plan(together, batch_of(batch))
    apart = tiling(family, rows, sms[1], group, **cuts)
    for number, request in enumerate(batch):
        alone = make_plan(batch_of([request]), apart, spec)
        assert items_of(together, number) == items_of(alone, 0)


def test_bounds_on_a_batch_do_not_cut_a_request_coarser() -> None:
    spec = spec_of(8, 4)
    bounded = replace(tiling("hopper", 8, 132, 4), max_partial_rows=0)
    plan = make_plan(batch_of([(1, 8192)] * 3), bounded, spec)
    assert plan.partial_rows == len(plan.decode) * 8 == 3 * 11 * 8


def pieces(cut: Any) -> int:
    return 1 if cut is None else int(cut.counts.max())


@pytest.mark.parametrize(
    ("keys", "expected"), [(0, 1), (1, 1), (128, 1), (256, 2), (1024, 4), (8192, 11), (131072, 45)]
)
def test_pieces_of_a_decode_grow_with_the_root_of_its_keys(keys: int, expected: int) -> None:
    tiles = Tiles(np.array([0]), np.array([float(keys)]), 128)
    assert pieces(cut_decode_by_request(tiles, RequestCuts())) == expected
    of_2048 = cut_decode_by_request(tiles, RequestCuts(2048))
    assert pieces(of_2048) == max(-(-keys // 2048), 1)


@pytest.mark.parametrize(
    ("tiles", "keys", "heads", "expected"),
    [
        (16, 16384, 8, 1),  # units enough
        (15, 16384, 8, 2),
        (4, 16384, 8, 4),
        (4, 4096, 8, 2),  # too few keys for more
        (1, 1024, 1, 1),
        (1, 131072, 1, 12),
    ],
)
def test_prefill_is_cut_where_its_own_units_are_few(
    tiles: int, keys: int, heads: int, expected: int
) -> None:
    of_one = Tiles(np.zeros(tiles, np.intp), np.full(tiles, float(keys)), 128)
    assert pieces(cut_prefill_by_request(of_one, heads)) == expected


def test_short_tiles_of_a_long_request_have_fewer_pieces() -> None:
    tiles = Tiles(np.array([0, 0, 1]), np.array([16384.0, 200.0, 200.0]), 128)
    cut = cut_prefill_by_request(tiles, 8)
    assert cut is not None
    assert cut.counts.tolist() == [4, 1, 1]


def test_short_requests_stay_whole() -> None:
    batch = batch_of([(1, 100)] * 4 + [(512, 600)])
    plan = make_plan(batch, tiling("hopper", 8, 132, 4), spec_of(8, 4))
    assert plan.num_merges == plan.partial_rows == 0
