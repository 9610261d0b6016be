"""What is decided for the portable family: shape of the tiles, and the prefill:decode ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from podrt.gpu.device import DeviceInfo
from podrt.kernels.families import Variant
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.portable.presets import Shape, variant
from podrt.kernels.variant import Form
from podrt.plan import Plan
from podrt.policy.calibration import calibration_of
from podrt.policy.cost import Prediction
from podrt.policy.policies import Family, FixedTiles, Policy
from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch
from podrt.spec.types import DType

#: Prefill:decode ratios of the CTAs of an SM, of which the nearest to the work is taken.
RATIOS = ((8, 1), (4, 1), (2, 1), (1, 1), (1, 2), (1, 4), (1, 8))


@lru_cache(maxsize=1024)  # building one checks it, which takes longer than planning a small batch
def _variant(
    form: Form,
    arch: str,
    dtype: DType,
    head_dim: int,
    fixed: FixedTiles,
    **chosen: Any,
) -> KernelConfig:
    """Return the usual variant with what is fixed of keys of a prefill tile, and of both rings."""
    usual = variant(form, arch, dtype, head_dim, **chosen)
    prefill = replace(
        usual.prefill,
        kv_tile=fixed.prefill_tile_keys or usual.prefill.kv_tile,
        kv_slots=fixed.prefill_ring or usual.prefill.kv_slots,
    )
    decode = replace(usual.decode, kv_slots=fixed.decode_ring or usual.decode.kv_slots)
    return replace(usual, prefill=prefill, decode=decode)


class PortableChoices:
    """The portable family's `podrt.policy.schedule.Choices`."""

    family: Family = "portable"

    def __init__(self, spec: AttentionSpec, gpu: DeviceInfo, policy: Policy) -> None:
        self.cuts = calibration_of(gpu).portable_cuts
        self._spec, self._arch = spec, gpu.arch.name
        self._shape: Shape = policy.shape or "large"
        self._tiles = policy.tiles
        self._fixed_ratio = (1, 1) if policy.serial else policy.ratio

    def decode_rows(self, batch: HybridBatch) -> int:
        """Return the rows of the decode tile, which are the same whatever the batch."""
        return self.variant("pod", 0).decode.rows

    def decode_rows_for(self, tokens: int) -> int:
        """Return the rows of the decode tile, which are the same whatever it must hold."""
        return self.variant("pod", 0).decode.rows

    def variants(self, decode_rows: int) -> tuple[KernelConfig, ...]:
        """Return the kernels of all forms."""
        forms: tuple[Form, ...] = ("pod", "prefill", "decode")
        return tuple(self.variant(form, decode_rows) for form in forms)

    def variant(self, form: Form, decode_rows: int, plan: Plan | None = None) -> KernelConfig:
        """Return the kernel of a form.

        Its tiles are the large ones, two CTAs to an SM, whatever the batch: even where they give
        few SMs prefill to do, its splits make up for that, and the small ones read keys twice as
        often (measured on an H200, `design/paper-reproduction.md`).
        """
        spec = self._spec
        return _variant(
            form,
            self._arch,
            spec.dtype,
            spec.head_dim,
            self._tiles,
            shape=self._shape,
            page_size=spec.page_size,
            causal=spec.mask.causal,
            soft_cap=spec.logits_soft_cap is not None,
            tree_mask=spec.mask.tree,
            v_head_dim=spec.v_head_dim,
        )

    def share(self, plan: Plan) -> Plan:
        """Return the plan with the ratio of CTAs that take prefill to those that take decode."""
        if not (len(plan.prefill) and len(plan.decode)):
            return plan
        prefill, decode = self._fixed_ratio or nearest_ratio(
            plan.num_prefill_units, plan.num_decode_units / self.variant("pod", 0).warps
        )
        return plan._replace(prefill_share=prefill, decode_share=decode)

    def are_better_apart(self, plan: Plan) -> bool:
        """Return False: a fused launch has the same tiles."""
        return False

    def predict(self, plan: Plan, variants: Sequence[Variant]) -> tuple[Prediction, ...]:
        """Return nothing: `podrt.policy.cost` knows the Hopper family alone."""
        return ()

    def why(self, plan: Plan) -> str:
        """Say what the ratio of CTAs goes by."""
        if self._fixed_ratio is not None:
            return "the policy fixes the ratio"
        return "the ratio is the nearest to the CTAs' work on each side"


def nearest_ratio(prefill_ctas: float, decode_ctas: float) -> tuple[int, int]:
    """Return the ratio nearest to the CTAs' (POD-Attention's proportional policy)."""
    wanted = math.log(prefill_ctas / decode_ctas)
    return min(RATIOS, key=lambda ratio: abs(math.log(ratio[0] / ratio[1]) - wanted))
