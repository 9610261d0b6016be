"""Which variant serves a batch: form, shape and the prefill:decode split ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from podrt.batch import HybridBatch
from podrt.errors import UnsupportedConfigError
from podrt.kernels.config import KernelConfig
from podrt.kernels.variants import RATIOS, Shape, variant
from podrt.layer import Layer
from podrt.plan import Plan, Tiling, is_decode

_NAMED_POLICIES = ("auto", "proportional", "50:50", "serial")
_MAX_SHARE = 64


@dataclass(frozen=True)
class Policy:
    """How the SMs are shared.

    Attributes
    ----------
    ratio : (int, int) or None
        Fixed prefill:decode ratio; None follows the amount of work on each side.
    serial : bool
        One launch per side instead of a fused one.
    """

    ratio: tuple[int, int] | None = None
    serial: bool = False


def parse_policy(policy: str) -> Policy:
    """Read a `policy` argument: a name, or a ratio such as ``"1:3"``."""
    if policy == "serial":
        return Policy(serial=True)
    if policy in ("auto", "proportional"):
        return Policy()
    if policy == "50:50":
        return Policy(ratio=(1, 1))
    prefill, colon, decode = str(policy).partition(":")
    if colon and prefill.isdecimal() and decode.isdecimal():
        ratio = int(prefill), int(decode)
        if min(ratio) >= 1 and max(ratio) <= _MAX_SHARE:
            return Policy(ratio=ratio)
    raise UnsupportedConfigError(
        f"policy={policy!r}: allowed are {', '.join(map(repr, _NAMED_POLICIES))}, or a "
        f'prefill:decode ratio "P:D" of numbers from 1 to {_MAX_SHARE}'
    )


def base_variant(batch: HybridBatch, layer: Layer, *, arch: str, num_sms: int) -> KernelConfig:
    """Return the fused variant whose tiles suit the batch; its split ratio is still open."""
    return variant(
        "pod",
        arch,
        layer.dtype,
        layer.head_dim,
        shape=_choose_shape(batch, layer, arch, num_sms),
        page_size=layer.page_size,
        causal=layer.causal,
    )


def launches(base: KernelConfig, plan: Plan, policy: Policy) -> tuple[KernelConfig, ...]:
    """Return the variants to launch, in order: one, or two for a serial policy; none for no work.

    A side that is alone gets the kernel of its own form.
    """
    prefill, decode = plan.num_prefill_units, plan.num_decode_units
    if policy.serial or not (prefill and decode):
        alone = replace(base, prefill_share=1, decode_share=1)
        sides = [replace(alone, form="prefill")] if prefill else []
        return tuple(sides + ([replace(alone, form="decode")] if decode else []))
    ratio = policy.ratio or nearest_ratio(prefill, decode / base.warps)
    return (replace(base, prefill_share=ratio[0], decode_share=ratio[1]),)


def tiling_of(config: KernelConfig, num_sms: int) -> Tiling:
    """Return what the planner must know of a variant on a GPU of `num_sms` SMs."""
    ctas = num_sms * config.ctas_per_sm
    return Tiling(
        prefill_rows=config.prefill.rows,
        decode_rows=config.decode.rows,
        prefill_kv_tile=config.prefill.kv_tile,
        decode_kv_tile=config.decode.kv_tile,
        prefill_slots=ctas,
        decode_slots=ctas * config.warps,
    )


def nearest_ratio(prefill_ctas: float, decode_ctas: float) -> tuple[int, int]:
    """Return the compiled ratio nearest to the CTAs' (POD-Attention's proportional policy)."""
    wanted = math.log(prefill_ctas / decode_ctas)
    return min(RATIOS, key=lambda ratio: abs(math.log(ratio[0] / ratio[1]) - wanted))


def _choose_shape(batch: HybridBatch, layer: Layer, arch: str, num_sms: int) -> Shape:
    """Small tiles when large ones would leave SMs without prefill work, else large ones."""
    large = variant("pod", arch, layer.dtype, layer.head_dim, shape="large")
    prefilling = ~is_decode(batch.q_lens, layer.group, large.decode.rows)
    rows = batch.q_lens[prefilling].astype(np.int64) * layer.group
    ctas = int((-(-rows // large.prefill.rows)).sum()) * layer.num_kv_heads
    return "small" if 0 < ctas < num_sms * large.ctas_per_sm else "large"
