"""One variant by itself: batches at the edges of its tiles, and the policy that runs it alone."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from podrt.bench.check import HEADS, edge_case
from podrt.explore.alone import alone, edge_lengths, gpu_for, layer_for
from podrt.explore.select import find, select
from podrt.kernels.hopper.presets import hopper_variant
from podrt.kernels.variant import Form
from podrt.reference import check_plan
from podrt.workloads.lengths import batch_of_lengths

VARIANTS = select(archs=["sm_90a", "sm_80"], dtypes=["bfloat16"])
VARIANTS += [
    hopper_variant(form, "bfloat16", 96, page_size=16, head_pairs=head_pairs)
    for form in get_args(Form)
    for head_pairs in (False, True)
]


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_every_variant_runs_alone_on_its_edges(heads):
    for variant in VARIANTS:
        layer, gpu = layer_for(variant, *heads), gpu_for(variant)
        case = edge_case(variant, heads)
        batch = batch_of_lengths(case.lengths, variant.page_size)
        found = alone(variant, layer, batch, gpu)
        assert found.schedule.variants == (variant,)
        check_plan(found.schedule.plan, batch)
        plan = found.schedule.plan
        assert bool(len(plan.prefill)) == variant.has_prefill
        assert bool(len(plan.decode)) == variant.has_decode
        if variant.has_decode:
            assert plan.num_merges > 0


def test_edges_are_those_of_tiles_and_pages():
    variant = find(["pod-hopper-bf16-d128-page16-r8"])
    lengths = edge_lengths(variant, 4)
    assert {31, 32, 33, 65} <= {q_len for q_len, _ in lengths}  # tokens of a tile: 128 / 4
    assert {111, 112, 113, 223, 224, 225} <= {kv for q_len, kv in lengths if q_len == 3}
    assert {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129} <= {kv for q, kv in lengths if q == 1}
    assert (2, 2) in lengths  # two tokens of four heads are a decode of eight rows
    other = edge_lengths(replace(variant, kv_tile=96), 4)
    assert {95, 96, 97} <= {kv for q_len, kv in other if q_len == 3}


def test_a_batch_of_other_sides_is_refused():
    variant = find(["decode-hopper-bf16-d128-page16-r8"])
    layer, gpu = layer_for(variant, 8, 2), gpu_for(variant)
    with pytest.raises(ValueError, match="a variant of form 'decode' takes requests of one token"):
        alone(variant, layer, batch_of_lengths([(100, 100)], 16), gpu)
