"""The kernel families, behind one set of functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import numpy as np

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import get_arch
from podrt.jit import KernelSource
from podrt.kernels.arguments import Buffers
from podrt.kernels.hopper import host as hopper
from podrt.kernels.hopper.arguments import HopperArguments
from podrt.kernels.hopper.config import DECODE_ROWS, HOPPER_ARCH, HopperConfig
from podrt.kernels.hopper.maps import why_unmappable
from podrt.kernels.hopper.presets import default_hopper_variants
from podrt.kernels.portable import host as portable
from podrt.kernels.portable.arguments import PortableArguments
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.portable.presets import PAGE_SIZES, default_variants
from podrt.kernels.variant import Form
from podrt.plan import Plan
from podrt.spec.attention import Layer
from podrt.spec.types import HEAD_DIMS, DType
from podrt.tensors.run_tensors import RunTensors

#: A variant of any family.
Variant = KernelConfig | HopperConfig

FAMILIES = ("portable", "hopper")


def source_of(config: Variant) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    if isinstance(config, HopperConfig):
        return hopper.source_of(config)
    return portable.source_of(config)


def argument_block(
    config: Variant, spec: Layer, tensors: RunTensors, buffers: Buffers
) -> HopperArguments | PortableArguments:
    """Return the arguments of a variant's launches over tensors of one layout.

    Raises
    ------
    ValueError
        The variant's family cannot read tensors that lie like that (`why_unreadable`).
    """
    if isinstance(config, HopperConfig):
        return HopperArguments(config, spec, tensors, buffers)
    return PortableArguments(config, spec, tensors, buffers)


def why_unreadable(config: Variant, tensors: RunTensors) -> str | None:
    """Say why a variant cannot read tensors that lie like that; None if it can."""
    if not isinstance(config, HopperConfig):
        return None
    inputs = (tensors.q, tensors.k_cache, tensors.v_cache)
    return next(filter(None, map(why_unmappable, inputs)), None)


def params_dtype(config: Variant) -> np.dtype[np.void]:
    """Return the layout of a variant's arguments."""
    return hopper.PARAMS_DTYPE if isinstance(config, HopperConfig) else portable.PARAMS_DTYPE


def grid_of(config: Variant, plan: Plan, num_sms: int) -> int:
    """Return the CTAs of a launch: as many as run at once, or fewer when there is not that much."""
    if isinstance(config, HopperConfig):
        return hopper.num_ctas(config, plan, num_sms)
    return portable.num_ctas(config, plan.num_prefill_units, plan.num_decode_units, num_sms)


def full_grid(config: Variant, num_sms: int) -> int:
    """Return the CTAs that run at once on a GPU: the grid of a launch for any batch."""
    return config.ctas_per_sm * num_sms


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
