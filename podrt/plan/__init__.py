"""From a batch to work items; pure NumPy."""

from podrt.plan.planner import Tiling, is_decode, make_plan
from podrt.plan.work import WORK_ITEM, WORK_ITEM_FIELDS, Plan, WorkList, keys_of

__all__ = [
    "WORK_ITEM",
    "WORK_ITEM_FIELDS",
    "Plan",
    "Tiling",
    "WorkList",
    "is_decode",
    "keys_of",
    "make_plan",
]
