"""Exact attention in NumPy, and an executor that walks a plan as the kernels do."""

from podrt.reference.attention import reference_attention
from podrt.reference.coverage import check_plan, coverage, expected_coverage
from podrt.reference.executor import execute_plan
from podrt.reference.pages import flat_page_table

__all__ = [
    "check_plan",
    "coverage",
    "execute_plan",
    "expected_coverage",
    "flat_page_table",
    "reference_attention",
]
