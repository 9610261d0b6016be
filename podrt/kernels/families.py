"""The kernel families there are, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import get_arch
from podrt.jit import KernelSource
from podrt.kernels.arguments import Buffers
from podrt.kernels.family import Arguments, Family, Filters
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.family import HopperFamily
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.portable.family import PortableFamily
from podrt.plan import Plan
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors

#: A variant of any family.
Variant = KernelConfig | HopperConfig

#: By name; a family on the left is the more general one.
FAMILIES: dict[str, Family] = {family.name: family for family in (PortableFamily(), HopperFamily())}


def family_of(config: Variant) -> Family:
    """Return the family of a variant."""
    return FAMILIES[config.family]


def source_of(config: Variant) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    return family_of(config).source_of(config)


def argument_block(
    config: Variant, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
) -> Arguments:
    """Return the arguments of a variant's launches over tensors of one layout.

    Raises
    ------
    ValueError
        The variant's family cannot read tensors that lie like that (`why_unreadable`).
    """
    return family_of(config).argument_block(config, spec, tensors, buffers)


def why_unreadable(config: Variant, tensors: RunTensors) -> str | None:
    """Say why a variant cannot read tensors that lie like that; None if it can."""
    return family_of(config).why_unreadable(config, tensors)


def stand_ins(config: Variant) -> tuple[Variant, ...]:
    """Return what may run a variant's plans in its place, depending on how tensors lie."""
    return family_of(config).stand_ins(config)


def variant_for(config: Variant, tensors: RunTensors) -> Variant:
    """Return what runs a variant's plans over tensors that lie like that: it or a stand-in."""
    found: Variant = family_of(config).variant_for(config, tensors)
    return found


def params_dtype(config: Variant) -> np.dtype[np.void]:
    """Return the layout of a variant's arguments."""
    return family_of(config).params_dtype()


def grid_of(config: Variant, plan: Plan, num_sms: int) -> int:
    """Return the CTAs of a launch: as many as run at once, or fewer when there is not that much."""
    return FAMILIES[config.family].grid_of(config, plan, num_sms)


def full_grid(config: Variant, num_sms: int) -> int:
    """Return the CTAs that run at once on a GPU: the grid of a launch for any batch."""
    return config.ctas_per_sm * num_sms


def all_default_variants(
    arch: str,
    *,
    families: Iterable[str] = FAMILIES,
    v_head_dim: int | None = None,
    **filters: Iterable[Any],
) -> list[Variant]:
    """Return the causal variants that a schedule may pick on `arch`, as the filters allow.

    Parameters
    ----------
    arch : str
        For example ``"sm_80"``; only ``"sm_90a"`` has variants of the Hopper family.
    families : iterable of str
        Names in `FAMILIES`.
    v_head_dim : int, optional
        Elements of a head of the values, if fewer than of the keys.
    **filters : iterables
        Other fields of `podrt.kernels.family.Filters`.

    Raises
    ------
    UnsupportedConfigError
        `arch` or one of `families` is unknown.
    """
    get_arch(arch)
    wanted, kept = tuple(families), Filters.of(v_head_dim=v_head_dim, **filters)
    for name in wanted:
        if name not in FAMILIES:
            raise UnsupportedConfigError(f"family={name!r}: allowed are {', '.join(FAMILIES)}")
    return [
        config
        for name, family in FAMILIES.items()
        if name in wanted
        for config in family.default_variants(arch, kept)
    ]
