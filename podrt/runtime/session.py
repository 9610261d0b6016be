"""What one `HybridAttention` has on its GPU: plans, workspaces, launches, a reservation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from podrt.kernels.families import Variant, full_grid, grid_of, why_unreadable
from podrt.kernels.joins import JoinConfig, ctas_of
from podrt.policy.explain import Explanation, explain
from podrt.policy.schedule import Schedule, Scheduler
from podrt.runtime.driver import Driver, Memory
from podrt.runtime.growth import Grower, Growth, grower_for
from podrt.runtime.kernels import load_joiner, load_kernel
from podrt.runtime.launcher import Launcher, LaunchersByKernel, Layout, Steps
from podrt.runtime.planned import Launches, Planned
from podrt.runtime.repeat import Repeat
from podrt.runtime.reservation import Limits, Reservation, room_for
from podrt.runtime.scratch import SCRATCH_ALIGNMENT_BYTES
from podrt.runtime.workspace import Workspace
from podrt.runtime.workspaces import Workspaces
from podrt.spec.batch import HybridBatch
from podrt.tensors.checks import (
    require_alignment,
    require_dtype,
    require_rank,
    require_unit_stride,
    require_writable,
)
from podrt.tensors.page_table import PageTable
from podrt.tensors.run_tensors import RunTensors
from podrt.tensors.tree_mask import TreeMask
from podrt.tensors.view import TensorView


class Session:
    """Plans and launches of one layer on one GPU. Its caller sees to one thread at a time.

    Parameters
    ----------
    driver : Driver
        The GPU.
    scheduler : Scheduler
        Chooses plans and kernels for the layer on that GPU.

    Attributes
    ----------
    repeatable : Repeat or None
        What repeats the last run, with the plan of now.
    """

    def __init__(self, driver: Driver, scheduler: Scheduler) -> None:
        self.driver, self.scheduler = driver, scheduler
        self._spec, self._num_sms = scheduler.spec, scheduler.gpu.num_sms
        self.workspaces = Workspaces(driver, self._spec.value_dim)
        self.reservation: Reservation | None = None
        self._planned: Planned | None = None
        self._growth: Growth | None = None  # of what was planned last, once it has grown
        self._grower: Grower | None = None
        self._by_other_family: Planned | None = None  # the same batch
        self._preferred = scheduler
        self._refused: tuple[Variant, ...] = ()  # preferred, but could not read the last tensors
        self.repeatable: Repeat | None = None
        self._known: tuple[tuple[tuple[Variant, ...], int, int], Launches] = ((), 0, 0), ()
        gpu = scheduler.gpu
        self._join = JoinConfig(gpu.arch.name, self._spec.value_dim, self._spec.dtype)

    def plan(
        self,
        batch: HybridBatch,
        table: PageTable | None,
        lengths: TensorView | None,
        tree: TreeMask | None = None,
    ) -> Planned:
        """Plan a batch and make sure of its kernels; what was planned before stays in place."""
        reserved = self.reservation
        if reserved is not None:
            reserved.limits.require(batch, table)
        schedule = self.scheduler.schedule(
            batch, decode_rows=reserved.decode_rows if reserved else None
        )
        if batch.prefixes:
            load_joiner(self._join, self.driver.ordinal)
        return Planned(batch, schedule.plan, self._launches(schedule), table, lengths, tree)

    @property
    def planned(self) -> Planned | None:
        """The batch planned last, as it is by now; None before the first."""
        if self._growth is not None:
            self._settle(self._growth)
        return self._planned

    @property
    def tensors_of_plan(self) -> tuple[TensorView | None, ...]:
        """What the plan reads besides a run's tensors, as `stream_of_plan` asks for it."""
        planned = self._planned
        if planned is None:
            return ()
        table = planned.page_table
        return table.tensor if table else None, planned.device_kv_lens

    def grow(self, num_keys: int, pages: Mapping[int, int], stream: int) -> bool:
        """Make every request of the planned batch longer on the GPU; say whether that could be.

        Parameters
        ----------
        num_keys : int
            That each of them has more.
        pages : {entry of the page table: page}
            Page numbers in host memory that are others now.
        stream : int
            As `adopt`.
        """
        workspace = self._found_by_runs(stream)
        growth = self._growth or self._growth_in(workspace)
        if growth is None or growth.workspace is not workspace:
            return False
        grower = self._grower
        if grower is None or not growth.allows(num_keys, pages):
            return False
        grower.launch(growth, num_keys, pages, stream)
        growth.grow(num_keys, pages)
        self._growth = growth
        if growth.has_unchecked_pages:
            self.repeatable = None  # the long way checks what has been added too
        return True

    def _found_by_runs(self, stream: int) -> Workspace | None:
        """Return where runs or replays to come on a stream find their plan, as far as is known.

        After `reserve` there is one place, whatever the stream.
        """
        if self.reservation is not None:
            return self.reservation.workspace
        repeat = self.repeatable
        return repeat.workspace if repeat is not None and repeat.is_on(stream) else None

    def _growth_in(self, workspace: Workspace | None) -> Growth | None:
        """Return how the plan may grow that lies in a workspace; None if it lies in none."""
        planned, reserved = self._planned, self.reservation
        if workspace is None or planned is None or workspace.planned is not planned:
            return None
        if self._grower is None:
            self._grower = grower_for(self.driver, self.scheduler.gpu.arch.name)
        most = self.scheduler.growth_left(
            planned.batch, decode_rows=reserved.decode_rows if reserved else None
        )
        if reserved is not None:
            most = min(most, reserved.limits.max_kv_len - planned.batch.max_kv_len)
        return Growth.of(workspace, planned, most)

    def _settle(self, growth: Growth) -> None:
        """Plan on the host what a plan on the GPU has grown to, which is the same."""
        batch, table = growth.grown()
        before, repeat = growth.planned, self.repeatable
        planned = self.plan(batch, table, before.device_kv_lens)
        if growth.is_in_place:
            growth.workspace.planned = planned
        self._planned, self._growth, self._by_other_family = planned, None, None
        if repeat is not None and repeat.workspace is growth.workspace:
            self.repeatable = None
            self._aim(repeat, planned)

    def explain(self, planned: Planned) -> Explanation:
        """Explain how a batch that was planned is run."""
        rows = self.reservation.decode_rows if self.reservation else None
        return explain(self.scheduler, planned.batch, decode_rows=rows)

    def adopt(self, planned: Planned, stream: int | None) -> None:
        """Take a plan as the one that runs compute, and copy it to where those on a stream find it.

        The stream is not being captured. Without one the first run copies it.
        """
        repeat, self.repeatable = self.repeatable, None
        self._by_other_family = None
        if self._growth is not None and self._growth.is_in_place:
            self._growth.workspace.planned = None  # it has grown there, and may be adopted again
        if stream is not None:
            workspace = self._workspace(planned, stream, may_be_captured=False)
            if repeat is not None and repeat.workspace is workspace:
                self._aim(repeat, planned)
        self._planned, self._growth = planned, None

    def reserve(self, limits: Limits, scratch: TensorView | None, stream: int) -> None:
        """Fix memory and kernels for all batches within some limits, and plan an empty one.

        `scratch` is memory that the caller brings for counters and partial results.
        """
        empty = self.plan(HybridBatch.empty(self._spec.page_size), None, None)
        room = room_for(limits, self.scheduler)
        brought = None if scratch is None else self._brought(scratch, room.scratch_bytes)
        for variant in room.variants:
            load_kernel(variant, self.driver.ordinal)
        self._grower = grower_for(self.driver, self.scheduler.gpu.arch.name)
        if limits.max_prefixes:
            load_joiner(self._join, self.driver.ordinal)
        workspace = self.workspaces.new()
        workspace.fix(room.plan_bytes, brought or room.scratch_bytes, stream)
        workspace.load(empty, stream)
        if self.reservation is not None and self.reservation.workspace.is_captured:
            self.workspaces.keep(self.reservation.workspace)
        full = self._with_full_grids
        self.reservation = Reservation(
            limits,
            room.decode_rows,
            workspace,
            stream,
            full(room.captured),
            full(room.captured_decode),
        )
        self._planned, self._growth = empty, None
        self.repeatable, self._by_other_family = None, None
        self.workspaces.release_streams()

    def repeat(self, q: Any, k_cache: Any, v_cache: Any, out: Any, sinks: Any, stream: Any) -> Any:
        """Run as the last time and return out; None where that cannot be."""
        if self.repeatable is None:
            return None
        return self.repeatable.run(q, k_cache, v_cache, out, sinks, stream)

    def run(
        self, planned: Planned, tensors: RunTensors, stream: int, *, decodes_only: bool
    ) -> None:
        """Enqueue a run of the planned batch whose tensors have been checked."""
        planned, reserved = self._readable(planned, tensors), self.reservation
        if reserved is not None and self.driver.is_capturing(stream):
            reserved.limits.require_cache(tensors.k_cache.shape, self._spec.page_size)
            launches, workspace = reserved.launches(decodes_only=decodes_only), reserved.workspace
            joined_tokens = reserved.limits.max_joined_tokens
            workspace.is_captured = True
        elif planned.launches:
            launches, workspace = planned.launches, self._workspace(planned, stream)
            joined_tokens = planned.plan.num_joined_tokens
        else:
            return
        self.repeatable = None
        prepared = workspace.launchers.of(Layout.of(tensors))
        steps = self._steps(workspace, launches, joined_tokens, tensors, prepared)
        for point_to, shape, _ in steps:
            self.driver.launch(*shape, stream, point_to(*tensors.addresses()), 0)
        self._remember(workspace, planned, tensors, stream, prepared)

    def _brought(self, scratch: TensorView, nbytes: int) -> Memory:
        """Check memory that the caller brings."""
        require_rank(scratch, 1, "[bytes]")
        require_dtype(scratch, "uint8")
        require_unit_stride(scratch)
        require_alignment(scratch, SCRATCH_ALIGNMENT_BYTES)
        require_writable(scratch)
        if scratch.device != self.driver.ordinal:
            raise ValueError(
                f"workspace: lies on {scratch.place}, expected cuda:{self.driver.ordinal}"
            )
        if scratch.shape[0] < nbytes:
            raise ValueError(
                f"workspace: has {scratch.shape[0]} bytes, expected at least the {nbytes} of "
                "workspace_bytes() with the same limits"
            )
        return Memory(scratch.pointer, scratch.shape[0], scratch.owner)

    def _readable(self, planned: Planned, tensors: RunTensors) -> Planned:
        """Return the plan, or the batch's of the other family if that is to read the tensors.

        Plans to come are made for the family that reads the tensors of now.
        """
        if self.reservation is None and self._refused:
            if _why_unreadable(self._refused, tensors) is None:
                return self._turn_to(self._preferred, planned, refused=())
            return planned
        reason = _why_unreadable(self._all_variants(planned), tensors)
        if reason is None:
            return planned
        policy = self.scheduler.policy
        if policy.family != "auto" or self.reservation is not None:
            raise ValueError(f'{reason}; pass another tensor, or use policy="portable"')
        portable = self._preferred.under(replace(policy, family="portable"))
        return self._turn_to(portable, planned, refused=planned.variants)

    def _turn_to(
        self, scheduler: Scheduler, planned: Planned, *, refused: tuple[Variant, ...]
    ) -> Planned:
        """Return the planned batch as another scheduler has it, planned once for both."""
        before, self.scheduler = self.scheduler, scheduler
        try:
            turned = self._by_other_family or self.plan(
                planned.batch, planned.page_table, planned.device_kv_lens, planned.tree_mask
            )
        except BaseException:
            self.scheduler = before
            raise
        self._by_other_family, self._planned, self._refused = planned, turned, refused
        self._growth = None
        self.repeatable = None  # of tensors that the family of now may not read
        return turned

    def _all_variants(self, planned: Planned) -> tuple[Variant, ...]:
        captured = self.reservation.captured if self.reservation else ()
        return planned.variants + tuple(variant for variant, _ in captured)

    def _launches(self, schedule: Schedule) -> Launches:
        """Return the kernels of a schedule, loaded, and their grids, which go by how many items."""
        variants, plan = schedule.variants, schedule.plan
        made_for = variants, len(plan.prefill), len(plan.decode)
        known_for, launches = self._known
        if made_for != known_for:  # as those of the last batch are
            for variant in variants:
                load_kernel(variant, self.driver.ordinal)  # now rather than in the first run
            grids = [grid_of(variant, plan, self._num_sms) for variant in variants]
            launches = tuple(zip(variants, grids, strict=True))
            self._known = made_for, launches
        return launches

    def _with_full_grids(self, variants: tuple[Variant, ...]) -> Launches:
        return tuple((variant, full_grid(variant, self._num_sms)) for variant in variants)

    def _workspace(
        self, planned: Planned, stream: int, *, may_be_captured: bool = True
    ) -> Workspace:
        if self.reservation is None:
            return self.workspaces.ready(planned, stream, may_be_captured=may_be_captured)
        workspace = self.reservation.workspace
        workspace.load(planned, stream)
        return workspace

    def _steps(
        self,
        workspace: Workspace,
        launches: Launches,
        joined_tokens: int,
        tensors: RunTensors,
        prepared: LaunchersByKernel,
    ) -> Steps:
        steps = []
        for variant, grid in launches:
            launcher = prepared.get(variant)
            if launcher is None:
                launcher = prepared[variant] = Launcher.of(
                    self.driver, variant, self._spec, tensors, workspace.buffers
                )
            steps.append(launcher.step(grid))
        if joined_tokens:
            launcher = prepared.get(self._join)
            if launcher is None:
                launcher = prepared[self._join] = Launcher.that_joins(
                    self.driver, self._join, self._spec, tensors, workspace.buffers
                )
            num_rows = joined_tokens * self._spec.num_qo_heads
            grid = ctas_of(self._join, num_rows, self._num_sms)
            steps.append(launcher.step(grid))
        return tuple(steps)

    def _remember(
        self,
        workspace: Workspace,
        planned: Planned,
        tensors: RunTensors,
        stream: int,
        prepared: LaunchersByKernel,
    ) -> None:
        """Let the next run with tensors like these go the short way."""
        if tensors.lse is None and not self.driver.is_capturing(stream):
            repeat = Repeat.of(self.driver, workspace, stream, tensors, prepared)
            if repeat is not None:
                self._aim(repeat, planned)

    def _aim(self, repeat: Repeat, planned: Planned) -> None:
        batch = planned.batch
        if not batch.has_room_in(repeat.tensors.k_cache.shape):
            return  # the long way says so
        tokens = batch.total_tokens
        most = self.reservation.limits.max_tokens if self.reservation else tokens
        of_batch = planned.launches, planned.plan.num_joined_tokens
        steps = self._steps(repeat.workspace, *of_batch, repeat.tensors, repeat.prepared)
        repeat.aim(planned, steps, tokens, max(most, tokens))
        self.repeatable = repeat


def _why_unreadable(variants: tuple[Variant, ...], tensors: RunTensors) -> str | None:
    """Say why one of the kernels cannot read tensors that lie like that; None if all can."""
    return next(filter(None, (why_unreadable(variant, tensors) for variant in variants)), None)
