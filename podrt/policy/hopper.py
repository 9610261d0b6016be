"""What is decided for the Hopper family: decode tile, one launch or two, shares of the SMs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from podrt.errors import UnsupportedConfigError
from podrt.gpu.device import DeviceInfo
from podrt.kernels.families import Variant
from podrt.kernels.hopper.config import (
    DECODE_ROWS,
    HopperConfig,
    decode_rows_of,
    gathers_rows,
    may_pair_heads,
)
from podrt.kernels.hopper.presets import has_large_tile, hopper_variant
from podrt.kernels.variant import Form
from podrt.plan import Plan, most_decode_tokens
from podrt.policy import cost
from podrt.policy.calibration import calibration_of
from podrt.policy.constants import Cuts
from podrt.policy.policies import Family, FixedTiles, Policy
from podrt.policy.sm_allocation import SmAllocation
from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch
from podrt.spec.query_lengths import QueryLengths
from podrt.spec.types import DType

#: Of what the constants of `Cuts` were measured with.
_MEASURED_HEAD_DIM = 128
_WIDE_HEAD_DIM = 256  # pieces beside prefill were measured there too; not at 192


@lru_cache(maxsize=1024)  # building one checks it, which takes longer than planning a small batch
def _variant(
    form: Form, dtype: DType, head_dim: int, fixed: FixedTiles, **chosen: Any
) -> HopperConfig:
    """Return the usual variant with what is fixed of the sides that it has."""
    usual = hopper_variant(form, dtype, head_dim, **chosen)
    wanted = (
        ("kv_tile", usual.has_prefill, fixed.prefill_tile_keys),
        ("stages", usual.has_prefill, fixed.prefill_ring),
        ("decode_slots", usual.has_decode, fixed.decode_ring),
    )
    changes: Any = {name: value for name, has, value in wanted if has and value is not None}
    found = replace(usual, **changes) if changes else usual
    if fixed.decode_ring is not None and form == "pod" and fixed.decode_ring < found.next_slots:
        return replace(found, next_decode_slots=fixed.decode_ring)
    return found


class HopperChoices:
    """The Hopper family's `podrt.policy.schedule.Choices`.

    Raises
    ------
    UnsupportedConfigError
        The policy fixes a tile that the layer has not.
    """

    family: Family = "hopper"

    def __init__(self, spec: AttentionSpec, gpu: DeviceInfo, policy: Policy) -> None:
        self._calibration = calibration = calibration_of(gpu)
        self.cuts = _cuts(calibration.hopper_cuts, spec.head_dim)
        self._spec, self._gpu, self._policy = spec, gpu, policy
        self._form = calibration.fused_form
        self._all_rows = decode_rows_of(spec.head_dim, spec.page_size)
        self._fixed_rows = _fixed_rows(policy, spec)
        self._tiles = policy.tiles
        self._head_pairs = _head_pairs(policy, spec)
        self._built: dict[tuple[Form, int, bool], HopperConfig] = {}
        self._rows_of_one = self.decode_rows_for(1)
        if policy.deterministic:  # neither batches nor limits decide
            self._fixed_rows = self._rows_of_one
        self._large_tile = _large_tile(policy, spec)
        self._may_part = policy.may_part and self._large_tile is not False
        self._fixed_shares = _shares(policy)
        self._sms = SmAllocation(gpu.num_sms, gpu.memory_gbs, calibration.sm_sharing)

    def decode_rows(self, batch: HybridBatch) -> int:
        """Return the rows of the smallest tile that holds nearly all requests of few rows whole."""
        if self._fixed_rows is not None:
            return self._fixed_rows
        if batch.max_q_len <= 1:  # a decode whatever the group
            return self._rows_of_one
        derived = batch.queries.derived
        rows: int | None = derived.get(self)
        if rows is None:
            rows = derived[self] = self._rows_for(batch.queries)
        return rows

    def _rows_for(self, queries: QueryLengths) -> int:
        group, covered = self._spec.group, self._form.covered_decodes
        not_empty = queries.num_above(0)

        def num_within(tokens: int) -> int:
            return not_empty - queries.num_above(tokens)

        # Nearly all of all requests are nearly all of the decodes too.
        if num_within(self._rows_of_one // group) >= covered * not_empty:
            return self._rows_of_one
        # A token may have more rows than the largest tile.
        decodes = num_within(most_decode_tokens(group, self._all_rows[-1], self._spec.mask))
        for rows in self._all_rows[:-1]:
            if rows >= group and num_within(rows // group) >= covered * decodes:
                return rows
        return self._all_rows[-1]

    def decode_rows_for(self, tokens: int) -> int:
        """Return the rows of the smallest decode tile that holds so many tokens, or the largest."""
        needed = tokens * self._spec.group
        if self._fixed_rows is not None:
            self._require_held(tokens, self._fixed_rows)
            return self._fixed_rows
        return next((rows for rows in self._all_rows if rows >= needed), self._all_rows[-1])

    def variants(self, decode_rows: int) -> tuple[HopperConfig, ...]:
        """Return the kernels of all forms and plans."""
        forms: tuple[Form, ...] = ("pod", "prefill", "decode")
        larges = (False, True) if self._large_tile is None else (self._large_tile,)
        found = [
            self._build(form, decode_rows, large_tile=large) for large in larges for form in forms
        ]
        return tuple(dict.fromkeys(found))

    def variant(self, form: Form, decode_rows: int, plan: Plan | None = None) -> HopperConfig:
        """Return the kernel of a form; prefill alone has larger tiles for long units."""
        large_tile = self._large_tile
        if large_tile is None:
            large_tile = form == "prefill" and plan is not None and self._has_long_units(plan)
        return self._build(form, decode_rows, large_tile=large_tile)

    def _build(self, form: Form, decode_rows: int, *, large_tile: bool) -> HopperConfig:
        chosen, spec = (form, decode_rows, large_tile), self._spec
        found = self._built.get(chosen)
        if found is None:
            found = self._built[chosen] = _variant(
                form,
                spec.dtype,
                spec.head_dim,
                self._tiles,
                decode_rows=decode_rows,
                large_tile=large_tile,
                page_size=spec.page_size,
                causal=spec.mask.causal,
                soft_cap=spec.logits_soft_cap is not None,
                tree_mask=spec.mask.tree,
                v_head_dim=spec.v_head_dim,
                head_pairs=self._head_pairs,
            )
        return found

    def share(self, plan: Plan) -> Plan:
        """Return the plan with the SMs of a fused launch shared between the sides."""
        shares = self._fixed_shares
        decode_only, prefill_only = self._sms.shares(plan) if shares is None else shares
        if not (decode_only or prefill_only):
            return plan
        return plan.with_ctas_of_one_side(decode_only, prefill_only)

    def are_better_apart(self, plan: Plan) -> bool:
        """Whether decode is too little to be worth hiding behind a long prefill."""
        if not self._may_part:
            return False
        return (
            plan.prefill_keys * plan.num_kv_heads >= self._form.long_prefill_keys
            and plan.decode_keys <= self._form.not_worth_hiding * plan.prefill_keys
            and self._has_long_units(plan)
        )

    def predict(self, plan: Plan, variants: Sequence[Variant]) -> tuple[cost.Prediction, ...]:
        """Return what each launch is predicted to take."""
        own = cast(Sequence[HopperConfig], variants)
        return cost.predict(plan, own, self._gpu, self._calibration)

    def why(self, plan: Plan) -> str:
        """Say which rule chose how both sides of a plan are run."""
        if self._fixed_shares is not None:
            return "the policy fixes the shares of the SMs"
        if self.are_better_apart(plan):
            part = self._form.not_worth_hiding
            return (
                f"decode has at most {part:.0%} of prefill's keys, too few to be worth hiding "
                "(FusedForm.not_worth_hiding)"
            )
        return self._sms.why(plan)

    def _require_held(self, tokens: int, rows: int) -> None:
        group = self._spec.group
        held = most_decode_tokens(group, rows, self._spec.mask)
        if tokens > held:
            whose = "the policy's" if self._policy.decode_rows else "deterministic=True's"
            raise UnsupportedConfigError(
                f"max_decode_tokens={tokens}: with {group} query heads per KV head, {whose} "
                f"decode_rows={rows} hold at most {held}; {self._what_holds(tokens, held)}"
            )

    def _what_holds(self, tokens: int, held: int) -> str:
        """Say what to pass instead; rows at None fit the tokens only if not deterministic."""
        group, mask = self._spec.group, self._spec.mask
        fit = [rows for rows in self._all_rows if most_decode_tokens(group, rows, mask) >= tokens]
        wider = f'fix decode_rows={fit[0]} (family="hopper"), or ' if fit else ""
        if not self._policy.deterministic:
            return f"{wider}leave them at None"
        freed = "decode_rows and deterministic" if self._policy.decode_rows else "deterministic"
        return f"reserve at most {held}, {wider or 'or '}leave out {freed}"

    def _has_long_units(self, plan: Plan) -> bool:
        return plan.prefill_keys / len(plan.prefill) >= self._form.long_unit_keys


def _fixed_rows(policy: Policy, spec: AttentionSpec) -> int | None:
    """Return the rows of decode tiles that the policy fixes, if any."""
    rows, allowed = policy.decode_rows, decode_rows_of(spec.head_dim, spec.page_size)
    if rows is not None and rows not in allowed:
        layer = f"head_dim={spec.head_dim}"
        if gathers_rows(spec.page_size):
            layer += f" and page_size={spec.page_size}"
        raise UnsupportedConfigError(
            f"decode_rows={rows}: with {layer} allowed are {allowed}; fix one of them, "
            "or leave it at None"
        )
    return rows


def _cuts(cuts: Cuts, head_dim: int) -> Cuts:
    """Return cuts, measured at head_dim 128, with pieces of decode for narrow and for wide heads.

    What starting and merging a piece costs is to be weighed against the bytes that it reads. Beside
    prefill pieces are as short for another reason: slots are of unlike speed there, and where heads
    are wide they are slower.
    """
    longer = max(1, _MEASURED_HEAD_DIM // head_dim)
    fused = cuts.fused_piece_keys
    if head_dim == _WIDE_HEAD_DIM:
        fused = fused * 3 // 4  # bench/results/h100/gemma-tiles.txt
    return replace(cuts, decode_piece_keys=longer * cuts.decode_piece_keys, fused_piece_keys=fused)


def _large_tile(policy: Policy, spec: AttentionSpec) -> bool | None:
    """Return whether prefill alone has the large tiles; None where that is for units to say."""
    if policy.prefill_tile_keys is not None:
        return False
    soft_cap = spec.logits_soft_cap is not None
    if has_large_tile(spec.head_dim, soft_cap=soft_cap, page_size=spec.page_size):
        is_fixed = policy.large_prefill_tile is not None or policy.deterministic
        return bool(policy.large_prefill_tile) if is_fixed else None
    if policy.large_prefill_tile:
        layer = f"head_dim={spec.head_dim}" + " with logits_soft_cap" * soft_cap
        if has_large_tile(spec.head_dim, soft_cap=soft_cap):
            layer += f" and page_size={spec.page_size}"
        raise UnsupportedConfigError(
            f"large_prefill_tile=True: {layer} has no large tiles; leave it at None"
        )
    return False


def _head_pairs(policy: Policy, spec: AttentionSpec) -> bool:
    """Return whether heads are decoded in pairs, in tiles of rows for which there are kernels.

    Neighbours lie side by side in most caches; over others a stand-in runs (`variant_for`).
    """
    has_pairs = (
        spec.kv_layout == "NHD"
        and spec.num_kv_heads % 2 == 0
        and may_pair_heads("decode", spec.head_dim, DECODE_ROWS[0], spec.page_size)
    )
    if policy.head_pairs and not has_pairs:
        raise UnsupportedConfigError(
            f"head_pairs=True: the layer has head_dim={spec.head_dim}, "
            f"num_kv_heads={spec.num_kv_heads}, page_size={spec.page_size} and "
            f"kv_layout={spec.kv_layout!r}; leave it at None"
        )
    return has_pairs and policy.head_pairs is not False


def _shares(policy: Policy) -> tuple[int, int] | None:
    """Return the SMs that take decode first, and prefill; None where the plan says."""
    fixed = policy.decode_only_sms, policy.prefill_only_sms
    if policy.serial:
        return 0, 0
    return None if fixed == (None, None) else (fixed[0] or 0, fixed[1] or 0)
