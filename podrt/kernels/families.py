"""The kernel families, behind one set of functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import get_arch
from podrt.jit import KernelSource
from podrt.kernels.hopper import host as hopper
from podrt.kernels.hopper.config import DECODE_ROWS, HOPPER_ARCH, HopperConfig
from podrt.kernels.hopper.presets import default_hopper_variants
from podrt.kernels.portable import host as portable
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.portable.presets import PAGE_SIZES, default_variants
from podrt.kernels.variant import Form
from podrt.spec.types import HEAD_DIMS, DType

#: A variant of any family.
Variant = KernelConfig | HopperConfig

FAMILIES = ("portable", "hopper")


def source_of(config: Variant) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    if isinstance(config, HopperConfig):
        return hopper.source_of(config)
    return portable.source_of(config)


def all_default_variants(
    arch: str,
    *,
    families: Iterable[str] = FAMILIES,
    forms: Iterable[Form] = get_args(Form),
    dtypes: Iterable[DType] = get_args(DType),
    head_dims: Iterable[int] = HEAD_DIMS,
    page_sizes: Iterable[int | None] = PAGE_SIZES,
    decode_rows: Iterable[int] = DECODE_ROWS,
) -> list[Variant]:
    """Return the causal variants that the dispatcher may pick on `arch`, as the filters allow.

    Parameters
    ----------
    arch : str
        For example ``"sm_80"``; only ``"sm_90a"`` has variants of the Hopper family.
    families, forms, dtypes, head_dims : iterable
        What to keep.
    page_sizes : iterable of int or None
        Pages to make variants for, None being a contiguous cache; sizes that the Hopper family
        cannot serve give portable variants alone.
    decode_rows : iterable of int
        Rows of the Hopper family's decode tiles.

    Raises
    ------
    UnsupportedConfigError
        `arch` or one of `families` is unknown.
    """
    families, forms, dtypes = tuple(families), tuple(forms), tuple(dtypes)
    head_dims, page_sizes = tuple(head_dims), tuple(page_sizes)
    for family in families:
        if family not in FAMILIES:
            raise UnsupportedConfigError(f"family={family!r}: allowed are {', '.join(FAMILIES)}")
    found: list[Variant] = []
    if "portable" in families:
        found += default_variants(
            arch,
            forms=forms,
            dtypes=dtypes,
            head_dims=head_dims,
            page_sizes=page_sizes,
        )
    if "hopper" in families and get_arch(arch).name == HOPPER_ARCH:
        found += default_hopper_variants(
            forms=forms,
            dtypes=dtypes,
            head_dims=head_dims,
            page_sizes=page_sizes,
            decode_rows=decode_rows,
        )
    return found
