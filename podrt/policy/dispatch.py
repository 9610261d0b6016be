"""Which variant serves a batch: family, form, shape and how SMs are shared."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from podrt.errors import UnsupportedConfigError
from podrt.kernels.families import Variant
from podrt.kernels.hopper import host as hopper
from podrt.kernels.hopper.config import DECODE_ROWS, HopperConfig
from podrt.kernels.hopper.presets import has_large_tile, hopper_variant, why_unsupported
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.portable.presets import Shape, variant
from podrt.kernels.variant import Form
from podrt.plan import Plan, Tiling, is_decode, keys_of
from podrt.policy.sm_allocation import shares_of_sms
from podrt.spec.attention import Layer
from podrt.spec.batch import HybridBatch

#: Prefill:decode ratios of the portable family, of which the nearest to the work is taken.
RATIOS = ((8, 1), (4, 1), (2, 1), (1, 1), (1, 2), (1, 4), (1, 8))
_MAX_SHARE = 64
_MAX_ONLY = 1024
#: Share of the decodes that a decode tile must hold; the others are taken as prefills.
_COVERED_DECODES = 0.9
#: Prefill alone has larger tiles for long units. It gains more from them than from a decode hidden
#: behind it where that has fewer keys than this share of its own, and it itself at least so many
#: (over all units).
_NOT_WORTH_HIDING, _LONG_PREFILL_KEYS = 0.04, 10_000_000


@dataclass(frozen=True)
class Policy:
    """Which kernels run, and how the SMs are shared.

    Attributes
    ----------
    family : {"auto", "portable", "hopper"}
        Kernel family; ``"auto"`` takes the Hopper family where it has a kernel for the layer.
    ratio : (int, int) or None
        Fixed prefill:decode ratio of the portable family; None follows the work on each side.
    serial : bool
        One launch per side instead of a fused one.
    shape : {"large", "small"} or None
        Shape of the portable family's tiles; None follows the batch.
    limit_splits : bool
        Whether prefill is split over its keys only as far as that pays beside decodes.
    decode_only_sms : int or None
        SMs of a fused Hopper launch that take no prefill before decode has run out; None follows
        the work on each side.
    prefill_only_sms : int
        The same with the sides exchanged.
    """

    family: Literal["auto", "portable", "hopper"] = "auto"
    ratio: tuple[int, int] | None = None
    serial: bool = False
    shape: Shape | None = None
    limit_splits: bool = True
    decode_only_sms: int | None = None
    prefill_only_sms: int = 0


_NAMED = {
    "auto": Policy(),
    "serial": Policy(serial=True),
    "hopper": Policy(family="hopper"),
    "hopper-serial": Policy(family="hopper", serial=True),
    "portable": Policy(family="portable"),
    "portable-serial": Policy(family="portable", serial=True),
    "proportional": Policy(family="portable"),
    "50:50": Policy(family="portable", ratio=(1, 1)),
    "ctas=2": Policy(family="portable", shape="large"),
    "ctas=4": Policy(family="portable", shape="small"),
    "splits=vanilla": Policy(family="portable", limit_splits=False),
}


def parse_policy(policy: str) -> Policy:
    """Read a `policy` argument: a name, a ratio such as ``"1:3"``, or SMs of one side."""
    if policy in _NAMED:
        return _NAMED[policy]
    name, _, number = str(policy).partition("=")
    if number.isdecimal() and int(number) <= _MAX_ONLY:
        if name == "decode-only":
            return Policy(family="hopper", decode_only_sms=int(number))
        if name == "prefill-only":
            return Policy(family="hopper", decode_only_sms=0, prefill_only_sms=int(number))
    prefill, colon, decode = str(policy).partition(":")
    if colon and prefill.isdecimal() and decode.isdecimal():
        ratio = int(prefill), int(decode)
        if min(ratio) >= 1 and max(ratio) <= _MAX_SHARE:
            return Policy(family="portable", ratio=ratio)
    raise UnsupportedConfigError(
        f"policy={policy!r}: allowed are {', '.join(map(repr, _NAMED))}, "
        f'"decode-only=N" or "prefill-only=N" of N SMs from 0 to {_MAX_ONLY}, or a '
        f'prefill:decode ratio "P:D" of numbers from 1 to {_MAX_SHARE}'
    )


def base_variant(batch: HybridBatch, layer: Layer, policy: Policy, *, arch: str) -> Variant:
    """Return the fused variant whose tiles suit the batch.

    Of the portable family these are the large ones, two CTAs to an SM, whatever the batch: even
    where they give few SMs prefill to do, its splits make up for that, and the small ones read
    keys twice as often (measured on an H200, `design/paper-reproduction.md`).

    Raises
    ------
    UnsupportedConfigError
        The policy asks for the Hopper family, which cannot serve this layer or GPU.
    """
    obstacle = why_unsupported(arch, layer.head_dim, layer.group, layer.page_size)
    if policy.family == "hopper" and obstacle:
        raise UnsupportedConfigError(
            f'policy="hopper": the Hopper family cannot serve this layer: {obstacle}; '
            'use policy="auto" or "portable"'
        )
    if policy.family != "portable" and not obstacle:
        return hopper_variant(
            "pod",
            layer.dtype,
            layer.head_dim,
            decode_rows=_decode_rows(batch, layer.group),
            page_size=layer.page_size,
            causal=layer.causal,
        )
    return variant(
        "pod",
        arch,
        layer.dtype,
        layer.head_dim,
        shape=policy.shape or "large",
        page_size=layer.page_size,
        causal=layer.causal,
    )


def share_sms(
    plan: Plan, base: Variant, policy: Policy, *, num_sms: int, memory_gbs: float
) -> Plan:
    """Return the plan with the SMs of a fused launch shared between the sides."""
    if policy.serial:
        return plan
    if isinstance(base, KernelConfig):
        prefill, decode = plan.num_prefill_units, plan.num_decode_units
        both = prefill and decode
        ratio = policy.ratio or (nearest_ratio(prefill, decode / base.warps) if both else (1, 1))
        return replace(plan, prefill_share=ratio[0], decode_share=ratio[1])
    decode_only, prefill_only = policy.decode_only_sms, policy.prefill_only_sms
    if decode_only is None:
        decode_only, prefill_only = shares_of_sms(
            plan, head_dim=base.head_dim, num_sms=num_sms, memory_gbs=memory_gbs
        )
    return replace(plan, decode_only_ctas=decode_only, prefill_only_ctas=prefill_only)


def launches(base: Variant, plan: Plan, policy: Policy) -> tuple[Variant, ...]:
    """Return the variants to launch, in order: one, or two for a serial policy; none for no work.

    A side that is alone gets the kernel of its own form.
    """
    prefill, decode = plan.num_prefill_units, plan.num_decode_units
    if policy.serial or not (prefill and decode) or _is_better_apart(base, plan, policy):
        sides = [_alone(base, "prefill", plan)] if prefill else []
        return tuple(sides + ([_alone(base, "decode", plan)] if decode else []))
    return (base,)


def tiling_of(config: Variant, num_sms: int, group: int, policy: Policy = _NAMED["auto"]) -> Tiling:
    """Return what the planner must know of a variant on a GPU of `num_sms` SMs."""
    if isinstance(config, HopperConfig):
        tiling = hopper.tiling_of(config, group, num_sms)
    else:
        tiling = _portable_tiling(config, num_sms)
    if not policy.limit_splits:
        tiling = replace(tiling, prefill_waves=None)
    if policy.serial:  # one launch after the other: nothing is beside decode
        tiling = replace(tiling, fused_piece_keys=tiling.decode_piece_keys, taper_decode=False)
    return tiling


def nearest_ratio(prefill_ctas: float, decode_ctas: float) -> tuple[int, int]:
    """Return the ratio nearest to the CTAs' (POD-Attention's proportional policy)."""
    wanted = math.log(prefill_ctas / decode_ctas)
    return min(RATIOS, key=lambda ratio: abs(math.log(ratio[0] / ratio[1]) - wanted))


def _portable_tiling(config: KernelConfig, num_sms: int) -> Tiling:
    ctas = num_sms * config.ctas_per_sm
    return Tiling(
        prefill_rows=config.prefill.rows,
        decode_rows=config.decode.rows,
        prefill_kv_tile=config.prefill.kv_tile,
        decode_kv_tile=config.decode.kv_tile,
        prefill_slots=ctas,
        decode_slots=ctas * config.warps,
        min_prefill_keys=384,
        min_decode_keys=128,
        prefill_waves=1,
        decode_piece_keys=4096,
        fused_piece_keys=4096,
        taper_decode=False,
    )


def _is_better_apart(base: Variant, plan: Plan, policy: Policy) -> bool:
    if policy.family != "auto" or not isinstance(base, HopperConfig):
        return False
    prefill, decode = (int(keys_of(items).sum()) for items in (plan.prefill, plan.decode))
    return (
        prefill * plan.num_kv_heads >= _LONG_PREFILL_KEYS
        and decode <= _NOT_WORTH_HIDING * prefill
        and has_large_tile(base.head_dim, prefill / len(plan.prefill))
    )


def _alone(base: Variant, form: Form, plan: Plan) -> Variant:
    if isinstance(base, KernelConfig):
        return replace(base, form=form)
    return hopper_variant(
        form,
        base.dtype,
        base.head_dim,
        decode_rows=base.decode_rows,
        unit_keys=float(keys_of(plan.prefill).mean()) if form == "prefill" else 0,
        page_size=base.page_size,
        causal=base.causal,
    )


def _decode_rows(batch: HybridBatch, group: int) -> int:
    """Rows of the smallest decode tile that holds nearly all requests of few rows whole."""
    rows = batch.q_lens.astype(np.int64) * group
    decoding = (rows > 0) & is_decode(batch.q_lens, group, DECODE_ROWS[-1])
    small = np.minimum(rows[decoding], DECODE_ROWS[-1])  # one token of a large group has more
    for candidate in DECODE_ROWS[:-1]:
        if candidate >= group and (small <= candidate).sum() >= _COVERED_DECODES * len(small):
            return candidate
    return DECODE_ROWS[-1]
