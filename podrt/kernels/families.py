"""The kernel families there are, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import get_arch
from podrt.jit import KernelSource
from podrt.kernels.family import Family, Filters
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.family import HopperFamily
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.portable.family import PortableFamily

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


def all_default_variants(
    arch: str, *, families: Iterable[str] = FAMILIES, **filters: Iterable[Any]
) -> list[Variant]:
    """Return the causal variants that a schedule may pick on `arch`, as the filters allow.

    Parameters
    ----------
    arch : str
        For example ``"sm_80"``; only ``"sm_90a"`` has variants of the Hopper family.
    families : iterable of str
        Names in `FAMILIES`.
    **filters : iterables
        Fields of `podrt.kernels.family.Filters`.

    Raises
    ------
    UnsupportedConfigError
        `arch` or one of `families` is unknown.
    """
    get_arch(arch)
    wanted, kept = tuple(families), Filters.of(**filters)
    for name in wanted:
        if name not in FAMILIES:
            raise UnsupportedConfigError(f"family={name!r}: allowed are {', '.join(FAMILIES)}")
    return [
        config
        for name, family in FAMILIES.items()
        if name in wanted
        for config in family.default_variants(arch, kept)
    ]
