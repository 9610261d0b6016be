"""From a batch to work items; pure NumPy."""

from podrt.plan.bounds import PlanBounds, PrefixLimits, plan_bounds
from podrt.plan.growth import GROWTH_STEP, Span
from podrt.plan.order import MAX_RUNS, prefill_unit
from podrt.plan.planner import is_decode, make_plan, most_decode_tokens
from podrt.plan.tiling import (
    DEFAULT_PARTIAL_BYTES,
    KeySharing,
    RequestCuts,
    SplitCosts,
    Tiling,
    partial_rows_within,
)
from podrt.plan.work import WORK_ITEM, WORK_ITEM_FIELDS, Plan, WorkList, keys_of

__all__ = [
    "DEFAULT_PARTIAL_BYTES",
    "GROWTH_STEP",
    "MAX_RUNS",
    "WORK_ITEM",
    "WORK_ITEM_FIELDS",
    "KeySharing",
    "Plan",
    "PlanBounds",
    "PrefixLimits",
    "RequestCuts",
    "Span",
    "SplitCosts",
    "Tiling",
    "WorkList",
    "is_decode",
    "keys_of",
    "make_plan",
    "most_decode_tokens",
    "partial_rows_within",
    "plan_bounds",
    "prefill_unit",
]
