"""Host side of the Hopper family: the grid of a launch."""

from __future__ import annotations

import numpy as np
import pytest
from plan_support import tiling_of
from spec_support import spec_of

from podrt.kernels.hopper import host as hopper
from podrt.kernels.hopper.presets import hopper_variant
from podrt.plan import Plan, make_plan
from podrt.spec.batch import HybridBatch

FUSED = hopper_variant("pod", "float16", 64, page_size=16)
GROUP, NUM_KV_HEADS = 3, 2


def plan_of(q_lens: list[int], kv_lens: list[int]) -> Plan:
    batch = HybridBatch.contiguous(
        np.cumsum([0, *q_lens]).astype(np.int32), np.array(kv_lens, np.int32)
    )
    tiling = tiling_of(FUSED, 132, GROUP)
    return make_plan(batch, tiling, spec_of(NUM_KV_HEADS, GROUP))


PLAN = plan_of([1, 50, 1], [20, 50, 7])  # 50 tokens of 3 heads are two tiles


@pytest.mark.parametrize(
    ("form", "num_sms", "ctas"),
    [("pod", 132, 8), ("pod", 5, 5), ("prefill", 132, 4), ("decode", 132, 4), ("decode", 3, 3)],
)
def test_grid_is_a_cta_per_sm_or_fewer(form: str, num_sms: int, ctas: int) -> None:
    config = hopper_variant(form, "float16", 64)  # type: ignore[arg-type]
    assert hopper.num_ctas(config, PLAN, num_sms) == ctas


def test_no_work_is_no_cta() -> None:
    assert hopper.num_ctas(FUSED, plan_of([0], [5]), 132) == 0
