"""`HybridAttention` without a GPU: real limits, schedules and checks; results in exact NumPy.

What a kernel would read on the GPU is read when a run is done: the plan that is in place then, the
page table, the lengths. So a replay of a recorded run (`recorded_graphs`) finds the batch that was
planned last.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import numpy as np
from fake_gpu import H100
from recorded_graphs import record
from schedule_support import work_of

from podrt.plan import most_decode_tokens
from podrt.policy.policies import policy_of
from podrt.policy.schedule import Scheduler
from podrt.reference import reference_attention
from podrt.reference.pages import flat_page_table
from podrt.runtime.reservation import Limits, room_for
from podrt.runtime.scratch import scratch_bytes
from podrt.spec.attention import make_spec
from podrt.tensors.host import to_numpy
from podrt.tensors.page_table import make_batch, read_page_table
from podrt.tensors.run_tensors import view_tensors
from podrt.tensors.view import view


class HostAttention:
    """Stands for `podrt.HybridAttention` on an H100."""

    #: Set by tests: plans that are made are not put in place, as if they had not been copied.
    keep_first_plan = False
    #: What ever computed a request of a layer, so many new tokens and so many keys.
    work: ClassVar[dict[Any, list[Any]]] = defaultdict(list)

    #: Steps that took no plan.
    num_grown = 0

    def __init__(
        self,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        page_size: int,
        dtype: str,
        sm_scale: float,
        window_left: int | None,
        logits_soft_cap: float | None,
        policy: Any,
        deterministic: bool,
        device: Any,
    ) -> None:
        self.layer = make_spec(
            num_qo_heads,
            num_kv_heads,
            head_dim,
            page_size,
            "NHD",
            dtype,
            True,
            sm_scale,
            window_left,
            logits_soft_cap,
        )
        self._scheduler = Scheduler(self.layer, H100, policy_of(policy, deterministic))
        self._limits: Limits | None = None
        self._planned: Any = None

    @property
    def reserved_variants(self) -> Any:
        return (*self._room.captured, *self._room.captured_decode)

    def workspace_bytes(self, *limits: int) -> int:
        return room_for(Limits(*limits), self._scheduler).scratch_bytes

    def reserve(self, *limits: int, workspace: Any = None) -> None:
        self._limits = Limits(*limits)
        self._room = room_for(self._limits, self._scheduler)
        assert workspace.shape[0] >= self._room.scratch_bytes

    def are_decodes(self, q_len: int) -> bool:
        return q_len <= most_decode_tokens(self.layer.group, self._room.decode_rows)

    def plan(self, qo_indptr: Any, kv_lens: Any, *, block_table: Any, device_kv_lens: Any) -> None:
        table = read_page_table(self.layer.page_size, block_table, None, None)
        batch = make_batch(
            np.array(qo_indptr, np.int32), np.array(kv_lens, np.int32), table, self.layer.page_size
        )
        # On a GPU the table is not in host memory, where its size would be limited too.
        self._limits.require(batch, None)
        schedule = self._scheduler.schedule(batch, decode_rows=self._room.decode_rows)
        self._require_room(schedule.plan)
        for request, own in enumerate(zip(batch.q_lens, batch.kv_lens, strict=True)):
            seen = self.work[(self.layer, *map(int, own))]
            if (work := work_of(schedule, request)) not in seen:
                seen.append(work)
        if self._planned is None or not self.keep_first_plan:
            self._planned = batch, schedule.plan, block_table, device_kv_lens

    def grow(self, num_keys: int) -> bool:
        """Do what a plan of the longer batch would, where the real one can."""
        if self._planned is None:
            return False
        batch, _, table, exact = self._planned
        if self._scheduler.growth_left(batch, decode_rows=self._room.decode_rows) < num_keys:
            return False
        HostAttention.num_grown += 1
        lens = batch.kv_lens + np.int32(num_keys)
        self.plan(batch.qo_indptr, lens, block_table=table, device_kv_lens=exact)
        return True

    def _require_room(self, plan: Any) -> None:
        rows = plan.partial_rows * self.layer.num_kv_heads
        assert scratch_bytes(rows, self.layer.value_dim) <= self._room.scratch_bytes

    def run(
        self, q: Any, k_cache: Any, v_cache: Any, *, out: Any, sinks: Any, decodes_only: bool
    ) -> Any:
        tensors = q, k_cache, v_cache, out, sinks
        record(lambda captured: self._run(*tensors, decodes_only and captured))
        return out

    def write_and_run_like(self, *tensors: Any) -> None:
        """Every layer takes the long way."""

    def _run(
        self, q: Any, k_cache: Any, v_cache: Any, out: Any, sinks: Any, decodes_only: bool
    ) -> None:
        batch, plan, table, device_kv_lens = self._planned
        tensors = view_tensors(
            self.layer, batch, 0, q, k_cache, v_cache,
            sinks=sinks, out=out, lse=None, return_lse=False, may_have_more_rows=True,
        )  # fmt: skip
        rows = batch.total_tokens
        if not rows:
            return
        exact = np.minimum(
            batch.kv_lens, to_numpy(view(device_kv_lens, "lengths"))[: len(batch.kv_lens)]
        )
        result, _ = reference_attention(
            to_numpy(tensors.q)[:rows],
            to_numpy(tensors.k_cache),
            to_numpy(tensors.v_cache),
            batch._replace(kv_lens=exact, max_kv_len=int(exact.max())),
            page_table=flat_page_table(to_numpy(view(table, "table"))),
            page_size=self.layer.page_size,
            sm_scale=self.layer.sm_scale,
            window_left=self.layer.mask.window_left,
            logits_soft_cap=self.layer.logits_soft_cap,
            sinks=None if tensors.sinks is None else to_numpy(tensors.sinks),
        )
        if decodes_only and len(plan.prefill):
            result = np.full_like(result, np.nan)  # left out by the kernel for decodes
        to_numpy(tensors.out)[:rows] = result
