"""`HybridAttention(deterministic=True)`: one kernel for ordinary runs and graphs alike."""

from __future__ import annotations

import pytest
from fake_gpu import FakeGpu
from runtime_support import (
    HEAD_DIM,
    KV_HEADS,
    LIMITS,
    STREAM,
    capture,
    is_of,
    layer,
    plan,
    replayed,
)

import podrt
from podrt.errors import UnsupportedConfigError
from podrt.plan import DEFAULT_PARTIAL_BYTES

ONE_TOKEN = LIMITS | {"max_decode_tokens": 1}


@pytest.mark.parametrize("policy", ["auto", "serial"])
def test_graphs_hold_the_kernels_of_ordinary_runs(gpu: FakeGpu, policy: str) -> None:
    attention = layer(deterministic=True, policy=policy)
    assert attention.policy.deterministic
    plan(attention)
    ordinary, items = attention.variants, attention.current_plan
    attention.reserve(**ONE_TOKEN, stream=STREAM)
    assert set(attention.reserved_variants) == set(ordinary)
    plan(attention)
    assert attention.variants == ordinary
    assert attention.current_plan.decode.tobytes() == items.decode.tobytes()
    assert attention.current_plan.prefill.tobytes() == items.prefill.tobytes()
    if policy == "auto":
        for decodes_only in (False, True):
            graph = capture(gpu, attention, decodes_only=decodes_only)
            plan(attention, ([0, 1, 2], [700, 90]))
            launch = replayed(gpu, graph)
            assert launch.variant == ordinary[0]
            assert is_of(launch, attention.current_plan)


def test_batches_within_the_limits_fit_though_none_is_cut_coarser(gpu: FakeGpu) -> None:
    attention = layer(deterministic=True)
    limits = {"max_requests": 900, "max_tokens": 900, "max_kv_len": 6400}
    attention.reserve(**limits, stream=STREAM)
    allocations = gpu.allocations
    plan(attention, ([*range(901)], [6400] * 900))
    assert gpu.allocations <= allocations + 1  # staging memory
    partial_bytes = attention.current_plan.partial_rows * KV_HEADS * HEAD_DIM * 4
    assert partial_bytes > DEFAULT_PARTIAL_BYTES


def test_a_reservation_for_larger_decode_tiles_is_refused(gpu: FakeGpu) -> None:
    attention = layer(deterministic=True)
    if attention.policy.family == "auto" and not _has_decode_rows(attention):
        attention.reserve(**LIMITS, stream=STREAM)  # the portable family has one tile
        return
    with pytest.raises(UnsupportedConfigError, match="max_decode_tokens=3"):
        attention.reserve(**LIMITS, stream=STREAM)
    assert not attention.is_reserved


def _has_decode_rows(attention: podrt.HybridAttention) -> bool:
    plan(attention)
    return isinstance(attention.variants[0], podrt.HopperConfig)
