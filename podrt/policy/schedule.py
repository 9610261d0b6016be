"""From a batch to its `Schedule`: what is planned and which kernels run it, decided in one place.

Attention, the dry run, the bench and the explorer all come here, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, Protocol

from podrt.errors import UnsupportedConfigError
from podrt.gpu.device import DeviceInfo
from podrt.kernels.families import FAMILIES, Variant, family_of, stand_ins
from podrt.kernels.variant import Form, TileGeometry
from podrt.plan import (
    DEFAULT_PARTIAL_BYTES,
    GROWTH_STEP,
    KeySharing,
    Plan,
    RequestCuts,
    Span,
    Tiling,
    make_plan,
    partial_rows_within,
)
from podrt.policy.buckets import Bucket, bucket_of, layer_name
from podrt.policy.calibration import calibration_of
from podrt.policy.candidates import as_candidate
from podrt.policy.constants import Cuts
from podrt.policy.cost import Prediction
from podrt.policy.hopper import HopperChoices
from podrt.policy.policies import Family, Policy
from podrt.policy.portable import PortableChoices
from podrt.policy.winners import RULES, Trial, load_trials
from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch
from podrt.spec.query_lengths import QueryLengths


class Schedule(NamedTuple):
    """What is launched for a batch.

    Attributes
    ----------
    plan : Plan
        Work items of both sides, and how SMs are shared between them.
    variants : tuple of Variant
        The kernels to launch, in order: one, two where the sides run apart, none for no work.
    base : Variant
        The fused variant that the plan was made for, whatever runs it.
    tiling : Tiling
        What the planner was told of it.
    trial : Trial or None
        The measurement that chose; None where rules did.
    """

    plan: Plan
    variants: tuple[Variant, ...]
    base: Variant
    tiling: Tiling
    trial: Trial | None = None


class _Last(NamedTuple):
    """Decodes of the last steps: of their schedule, the plan alone depends on how long they are."""

    span: Span
    decode_rows: int | None
    schedule: Schedule


class Choices(Protocol):
    """What the policy of one kernel family decides, for a layer, a GPU and a `Policy`."""

    family: Family
    cuts: Cuts

    def decode_rows(self, batch: HybridBatch) -> int:
        """Return the packed query rows of the decode tile that suits a batch."""

    def decode_rows_for(self, tokens: int) -> int:
        """Return the rows of the smallest decode tile that holds so many tokens, or the largest.

        Raises UnsupportedConfigError where the policy fixes a tile that does not hold them.
        """

    def variant(self, form: Form, decode_rows: int, plan: Plan | None = None) -> Variant:
        """Return the kernel of a form, for a plan or for planning."""

    def variants(self, decode_rows: int) -> tuple[Variant, ...]:
        """Return the kernels of all forms and plans."""

    def share(self, plan: Plan) -> Plan:
        """Return the plan with its sides' shares of a fused launch."""

    def are_better_apart(self, plan: Plan) -> bool:
        """Whether both sides run sooner in a launch each."""

    def predict(self, plan: Plan, variants: Sequence[Variant]) -> tuple[Prediction, ...]:
        """Return what each launch is predicted to take; nothing where there is no model."""

    def why(self, plan: Plan) -> str:
        """Say which rule chose how both sides of a plan are run."""


class Scheduler:
    """Schedules the batches of one layer on one GPU; keeps what does not depend on the batch.

    Parameters
    ----------
    spec : AttentionSpec
        The attention layer.
    gpu : DeviceInfo
        The GPU, which need not be there.
    policy : Policy
        What the caller fixes.

    Raises
    ------
    UnsupportedConfigError
        The policy asks for the Hopper family, which cannot serve this layer or GPU, or for a tile
        that the layer has not.
    """

    def __init__(self, spec: AttentionSpec, gpu: DeviceInfo, policy: Policy) -> None:
        self.spec, self.gpu, self.policy = spec, gpu, policy
        self._choices = _choices_for(spec, gpu, policy)
        self._bases: dict[int, tuple[Variant, Tiling]] = {}
        self._trials = self._own_trials() if policy.autotuned else {}
        self._winners: dict[str, Scheduler] = {}
        self._queries: QueryLengths | None = None  # of the batch that was planned last
        self._last: _Last | None = None  # read once: other threads write it

    def schedule(self, batch: HybridBatch, *, decode_rows: int | None = None) -> Schedule:
        """Plan a batch and choose its kernels.

        Parameters
        ----------
        batch : HybridBatch
            Lengths and page geometry.
        decode_rows : int, optional
            Packed query rows of a decode tile, where the family has several; None follows the
            batch.
        """
        if self._trials and not batch.prefixes:  # none was measured with prefixes
            trial = self._trials.get(bucket_of(batch, self.spec.mask))
            if trial is not None:
                return self._by_trial(trial, batch, decode_rows)
        return self._by_rules(batch, decode_rows)

    def _by_trial(self, trial: Trial, batch: HybridBatch, decode_rows: int | None) -> Schedule:
        """Schedule a batch as what won; a reserved decode tile means graphs, of one launch."""
        name = trial.winner(fused=decode_rows is not None)
        if name == RULES:
            return self._by_rules(batch, decode_rows)._replace(trial=trial)
        winner = self._winners.get(name)
        if winner is None:
            family = self.family
            winner = self._winners[name] = self.under(as_candidate(self.policy, name, family))
        return winner.schedule(batch, decode_rows=decode_rows)._replace(trial=trial)

    def _by_rules(self, batch: HybridBatch, decode_rows: int | None) -> Schedule:
        last = self._last
        if last is not None and last.decode_rows == decode_rows:
            grown = last.span.plan_of(batch)
            if grown is not None:
                return Schedule(grown, *last.schedule[1:])
        rows = self._choices.decode_rows(batch) if decode_rows is None else decode_rows
        base, tiling = self._base(rows)
        plan = make_plan(batch, tiling, self.spec)
        plan = self._choices.share(plan)
        variants = tuple([self._choices.variant(form, rows, plan) for form in self._forms(plan)])
        schedule = Schedule(plan, variants, base, tiling)
        if not (len(plan.prefill) or tiling.request_cuts) and batch.queries is self._queries:
            span = Span.of(batch, plan)
            if span is not None:
                self._last = _Last(span, decode_rows, schedule)
        self._queries = batch.queries
        return schedule

    def growth_left(self, batch: HybridBatch, *, decode_rows: int | None = None) -> int:
        """Return how many keys more all requests may have with the schedule that they have.

        Only ends of last pieces differ. 0 if the batch is not of the span scheduled last.
        """
        last = self._last
        if last is None or last.decode_rows != decode_rows or self._trials:
            return 0  # what was measured may choose otherwise a key later
        growth = last.span.growth_of(batch)
        return 0 if growth is None else GROWTH_STEP - 1 - growth

    @property
    def family(self) -> Family:
        """The kernel family that serves the layer on this GPU."""
        return self._choices.family

    def under(self, policy: Policy) -> Scheduler:
        """Return the scheduler of the same layer and GPU under another policy; raises as it."""
        return _scheduler(self.spec, self.gpu, policy)

    def predict(self, schedule: Schedule) -> tuple[Prediction, ...]:
        """Return what each launch of a schedule of its own is predicted to take.

        Nothing for the portable family, which has no model. It does not decide anything.
        """
        return self._choices.predict(schedule.plan, schedule.variants)

    def why(self, schedule: Schedule) -> str:
        """Say which rule decided how a schedule of its own is run."""
        if self.policy.deterministic:
            return "deterministic: the same kernels whatever the batch"
        if not (len(schedule.plan.prefill) and len(schedule.plan.decode)):
            return "a batch of one kind takes that kind's own kernel"
        if schedule.trial is not None:
            return str(schedule.trial)
        if self.policy.serial:
            return "the policy fixes a launch for each side"
        return self._choices.why(schedule.plan)

    def decode_rows_for(self, tokens: int) -> int:
        """Return the rows of a decode tile in which requests of so many tokens are decodes.

        Raises
        ------
        UnsupportedConfigError
            The policy fixes a tile that does not hold them.
        """
        return self._choices.decode_rows_for(tokens)

    def tiling(self, decode_rows: int) -> Tiling:
        """Return what the planner is told of the fused kernel with that decode tile."""
        return self._base(decode_rows)[1]

    def captured(self, decode_rows: int, *, decodes_only: bool = False) -> tuple[Variant, ...]:
        """Return the kernels that compute any batch, or any batch of decodes alone, in order."""
        forms: tuple[Form, ...] = ("prefill", "decode") if self.policy.serial else ("pod",)
        if decodes_only and (self.policy.serial or not self.policy.deterministic):
            forms = ("decode",)
        return tuple(self._choices.variant(form, decode_rows) for form in forms)

    def variants(self, decode_rows: int) -> tuple[Variant, ...]:
        """Return all kernels that batches may be run with, given the decode tile."""
        variants = self._choices.variants(decode_rows)
        if self.policy.deterministic:
            captured = self.captured(decode_rows)
            variants = tuple(variant for variant in variants if variant in captured)
        return variants + tuple(other for variant in variants for other in stand_ins(variant))

    def _own_trials(self) -> dict[Bucket | None, Trial]:
        """Return what was measured of this layer on this GPU."""
        layer = layer_name(self.spec, self.family)
        return {each.bucket: each for each in load_trials(self.gpu) if each.layer == layer}

    def _base(self, decode_rows: int) -> tuple[Variant, Tiling]:
        found = self._bases.get(decode_rows)
        if found is None:
            base = self._choices.variant("pod", decode_rows)
            base.require_spec(self.spec)
            geometry = family_of(base).geometry_of(base, self.spec.group, self.gpu.num_sms)
            most_bytes = self.policy.max_partial_bytes
            most_rows = partial_rows_within(
                DEFAULT_PARTIAL_BYTES if most_bytes is None else most_bytes,
                self.spec.num_kv_heads,
                self.spec.value_dim,
            )
            tiling = tiling_for(
                geometry,
                self._choices.cuts,
                self.policy,
                max_partial_rows=most_rows,
                key_sharing=key_sharing_on(self.gpu),
            )
            found = self._bases[decode_rows] = base, tiling
        return found

    def _forms(self, plan: Plan) -> tuple[Form, ...]:
        """Return the forms to launch; a side that is alone gets the kernel of its own form."""
        has_prefill, has_decode = len(plan.prefill) > 0, len(plan.decode) > 0
        if self.policy.deterministic and not self.policy.serial:
            return ("pod",) if has_prefill or has_decode else ()
        if has_prefill and has_decode:
            apart = self.policy.serial or self._choices.are_better_apart(plan)
            return ("prefill", "decode") if apart else ("pod",)
        if has_prefill:
            return ("prefill",)
        return ("decode",) if has_decode else ()


def schedule(
    batch: HybridBatch,
    spec: AttentionSpec,
    gpu: DeviceInfo,
    policy: Policy,
    *,
    decode_rows: int | None = None,
) -> Schedule:
    """Plan a batch and choose its kernels; `Scheduler` has the parameters and errors."""
    return _scheduler(spec, gpu, policy).schedule(batch, decode_rows=decode_rows)


_scheduler = lru_cache(maxsize=256)(Scheduler)


def key_sharing_on(gpu: DeviceInfo) -> KeySharing:
    """Return what the planner must know of a GPU's L2; every SM has a unit of prefill at least."""
    share = calibration_of(gpu).l2_use.resident_share
    return KeySharing(resident_bytes=int(share * gpu.l2_bytes), units_at_once=gpu.num_sms)


#: Nothing stays in L2, and units do not all run at once: the order always matters.
_BY_HEAD = KeySharing(resident_bytes=0, units_at_once=0)


def tiling_for(
    geometry: TileGeometry,
    cuts: Cuts,
    policy: Policy,
    *,
    max_partial_rows: int | None = None,
    key_sharing: KeySharing | None = None,
) -> Tiling:
    """Return what the planner must know: the tiles, how far keys are cut, and the order."""
    cuts = _cuts_for(cuts, policy)
    if policy.prefill_order is not None:
        key_sharing = _BY_HEAD if policy.prefill_order == "head" else None
    return Tiling(
        **geometry._asdict(),
        min_prefill_keys=cuts.min_prefill_keys,
        min_decode_keys=cuts.min_decode_keys,
        prefill_waves=cuts.prefill_waves,
        decode_piece_keys=cuts.decode_piece_keys,
        fused_piece_keys=cuts.fused_piece_keys,
        taper_decode=cuts.taper_decode,
        costs=cuts.costs,
        max_partial_rows=max_partial_rows,
        key_sharing=key_sharing,
        request_cuts=RequestCuts(policy.decode_piece_keys) if policy.deterministic else None,
    )


def _cuts_for(cuts: Cuts, policy: Policy) -> Cuts:
    """Return how far keys are cut with what a policy fixes."""
    if policy.serial:  # nothing is beside decode
        cuts = replace(cuts, fused_piece_keys=cuts.decode_piece_keys, taper_decode=False)
    if policy.limit_splits is False:
        cuts = replace(cuts, prefill_waves=None)
    if policy.taper_decode is not None:
        cuts = replace(cuts, taper_decode=policy.taper_decode)
    keys = policy.decode_piece_keys
    if keys is not None:
        cuts = replace(
            cuts,
            decode_piece_keys=keys,
            fused_piece_keys=keys,
            min_decode_keys=min(cuts.min_decode_keys, keys),
        )
    return cuts


#: By family, the preferred one first.
_CHOICES: dict[str, Callable[[AttentionSpec, DeviceInfo, Policy], Choices]] = {
    "hopper": HopperChoices,
    "portable": PortableChoices,
}


def _choices_for(spec: AttentionSpec, gpu: DeviceInfo, policy: Policy) -> Choices:
    names = list(_CHOICES) if policy.family == "auto" else [policy.family]
    obstacles = {name: FAMILIES[name].why_unsupported(spec, gpu.arch.name) for name in names}
    for name, obstacle in obstacles.items():
        if obstacle is None:
            return _CHOICES[name](spec, gpu, policy)
    raise UnsupportedConfigError(
        f'policy="{policy.family}": the {policy.family.capitalize()} family cannot serve this '
        f'layer: {obstacles[policy.family]}; use policy="auto" or "portable"'
    )
