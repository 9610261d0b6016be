"""Layers, steps, and what stands for `podrt.HybridAttention`, to test what vLLM calls of podrt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from podrt.integrations.vllm.impl import PodrtImpl

MODEL = "some/model"
LIMITS = (8, 256, 512, 1)


def impl_of(**changes: Any) -> PodrtImpl:
    given = {"num_heads": 8, "head_size": 64, "scale": 0.125, "num_kv_heads": 2} | changes
    impl = object.__new__(PodrtImpl)  # its parent's asks for a distributed environment
    impl.__init__(**given)  # type: ignore[misc]
    return impl


class Recording:
    """Stands for `podrt.HybridAttention`, and keeps what it is told."""

    def __init__(self, *shape: Any, **options: Any) -> None:
        self.shape, self.options, self.plans, self.runs = shape, options, [], []
        self.layer = SimpleNamespace(page_size=options["page_size"], dtype=options["dtype"])
        self.reserved_variants = (SimpleNamespace(family="hopper", name="a_kernel"),)

    def workspace_bytes(self, *limits: int) -> int:
        return 1000

    def reserve(self, *limits: int, workspace: Any) -> None:
        self.limits, self.workspace = limits, workspace

    def are_decodes(self, q_len: int) -> bool:
        return q_len <= 2

    def plan(self, *lengths: Any, **tables: Any) -> None:
        self.plans.append((*lengths, tables))

    def run(self, *tensors: Any, **options: Any) -> Any:
        self.runs.append((tensors, options))
        return options["out"]

    def write_and_run_like(self, *tensors: Any) -> None:
        """Every layer takes the long way."""


def common(**changes: Any) -> Any:
    """A prefill of 5 tokens, a decode, and a request of padding."""
    given = {
        "causal": True,
        "num_reqs": 3,
        "num_actual_tokens": 8,
        "max_query_len": 5,
        "max_seq_len": 40,
        "query_start_loc_cpu": torch.tensor([0, 5, 6, 6, 6], dtype=torch.int32),
        "seq_lens": torch.tensor([40, 30, 0, 0], dtype=torch.int32),
        "seq_lens_cpu_upper_bound": torch.tensor([40, 600, 0, 0], dtype=torch.int32),
        "block_table_tensor": torch.zeros((4, 16), dtype=torch.int32),
        "slot_mapping": torch.zeros(8, dtype=torch.int64),
    } | changes
    return SimpleNamespace(**given)
