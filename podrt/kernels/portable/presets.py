"""The default set of variants: which tiles each architecture and head dim gets.

Two shapes per head dim, after POD-Attention (arXiv 2410.18038) section 4.2.2: ``"large"`` runs two
CTAs of four warps on an SM and suits long prefills, ``"small"`` runs four CTAs of two warps and
wastes less of a tile on short ones. Tiles are as large as registers (no spill) and shared memory
allow; `design/portable-kernel.md` has the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from podrt.gpu.arch import KIB, get_arch
from podrt.kernels.portable.config import KernelConfig, Tile, row_columns_of
from podrt.kernels.variant import DEFAULT_HEAD_DIMS, DEFAULT_PAGE_SIZES, Form
from podrt.spec.types import DType

Shape = Literal["large", "small"]


class Preset(NamedTuple):
    """Tiles and residency of a shape."""

    prefill: Tile
    decode: Tile
    warps: int
    ctas_per_sm: int


#: (shared memory per SM in KiB, columns of a row, shape); the largest memory that fits is taken.
_PRESETS: dict[tuple[int, int, Shape], Preset] = {
    (228, 64, "large"): Preset(Tile(128, 64, 4), Tile(16, 32, 6), 4, 2),
    (228, 64, "small"): Preset(Tile(64, 64, 3), Tile(16, 32, 6), 2, 4),
    (228, 128, "large"): Preset(Tile(128, 32, 8), Tile(16, 32, 3), 4, 2),
    (228, 128, "small"): Preset(Tile(64, 32, 3), Tile(16, 32, 3), 2, 4),
    (228, 192, "large"): Preset(Tile(64, 64, 3), Tile(16, 16, 4), 4, 2),
    (228, 192, "small"): Preset(Tile(32, 32, 3), Tile(16, 16, 4), 2, 4),
    (228, 256, "large"): Preset(Tile(64, 32, 4), Tile(16, 16, 3), 4, 2),
    (228, 256, "small"): Preset(Tile(32, 32, 2), Tile(16, 16, 3), 2, 4),
    (164, 64, "large"): Preset(Tile(128, 64, 4), Tile(16, 32, 5), 4, 2),
    (164, 64, "small"): Preset(Tile(64, 64, 3), Tile(16, 32, 4), 2, 4),
    (164, 128, "large"): Preset(Tile(128, 32, 6), Tile(16, 16, 5), 4, 2),
    (164, 128, "small"): Preset(Tile(64, 32, 2), Tile(16, 16, 4), 2, 4),
    (164, 192, "large"): Preset(Tile(64, 32, 4), Tile(16, 16, 3), 4, 2),
    (164, 192, "small"): Preset(Tile(32, 32, 2), Tile(16, 16, 3), 2, 4),
    (164, 256, "large"): Preset(Tile(64, 32, 2), Tile(16, 16, 2), 4, 2),
    (164, 256, "small"): Preset(Tile(32, 16, 2), Tile(16, 16, 2), 2, 4),
    (100, 64, "large"): Preset(Tile(128, 64, 3), Tile(16, 32, 2), 4, 2),
    (100, 64, "small"): Preset(Tile(64, 32, 3), Tile(16, 16, 5), 2, 4),
    (100, 128, "large"): Preset(Tile(64, 32, 3), Tile(16, 16, 2), 4, 2),
    (100, 128, "small"): Preset(Tile(32, 16, 2), Tile(16, 16, 2), 2, 4),
    (100, 192, "large"): Preset(Tile(64, 32, 5), Tile(16, 16, 3), 4, 1),
    (100, 192, "small"): Preset(Tile(32, 32, 3), Tile(16, 16, 4), 2, 2),
    (100, 256, "large"): Preset(Tile(64, 16, 2), Tile(16, 16, 2), 4, 1),
    (100, 256, "small"): Preset(Tile(32, 16, 2), Tile(16, 16, 2), 2, 2),
}

#: Where one architecture can do better than others with as much memory: 64 keys at head_dim 128
#: take every register, and spill on sm_100.
_ARCH_PRESETS: dict[tuple[str, int, Shape], Preset] = {
    ("sm_90a", 128, "large"): Preset(Tile(128, 64, 3), Tile(16, 32, 3), 4, 2),
}


def preset(arch: str, head_dim: int, shape: Shape) -> Preset:
    """Return the tiles of a shape on an architecture."""
    columns = row_columns_of(head_dim)
    own = _ARCH_PRESETS.get((get_arch(arch).name, columns, shape))
    if own is not None:
        return own
    memory_kib = get_arch(arch).smem_per_sm_bytes // KIB
    fitting = max(kib for kib, size, _ in _PRESETS if size == columns and kib <= memory_kib)
    return _PRESETS[fitting, columns, shape]


def variant(
    form: Form,
    arch: str,
    dtype: DType,
    head_dim: int,
    *,
    shape: Shape = "large",
    page_size: int | None = None,
    causal: bool = True,
    soft_cap: bool = False,
    tree_mask: bool = False,
    v_head_dim: int | None = None,
) -> KernelConfig:
    """Return the default variant for a job."""
    prefill, decode, warps, ctas_per_sm = preset(arch, head_dim, shape)
    return KernelConfig(
        form=form,
        arch=arch,
        dtype=dtype,
        head_dim=head_dim,
        prefill=prefill,
        decode=decode,
        warps=warps,
        ctas_per_sm=ctas_per_sm,
        page_size=page_size,
        causal=causal,
        soft_cap=soft_cap,
        tree_mask=tree_mask,
        v_head_dim=v_head_dim,
    )


def default_variants(
    arch: str,
    *,
    forms: Iterable[Form] = get_args(Form),
    dtypes: Iterable[DType] = get_args(DType),
    head_dims: Iterable[int] = DEFAULT_HEAD_DIMS,
    shapes: Iterable[Shape] = get_args(Shape),
    page_sizes: Iterable[int | None] = DEFAULT_PAGE_SIZES,
    soft_caps: Iterable[bool] = (False,),
    tree_masks: Iterable[bool] = (False,),
    v_head_dim: int | None = None,
) -> list[KernelConfig]:
    """Return the causal variants that a schedule may pick on `arch`, as the filters allow.

    With a `v_head_dim` heads that are wider than it have values of that many elements; there are no
    others.
    """
    forms, shapes, head_dims = tuple(forms), tuple(shapes), tuple(head_dims)
    page_sizes, dtypes, soft_caps = tuple(page_sizes), tuple(dtypes), tuple(soft_caps)
    return [
        variant(
            form,
            arch,
            dtype,
            head_dim,
            shape=shape,
            page_size=page_size,
            soft_cap=soft_cap,
            tree_mask=tree_mask,
            v_head_dim=v_head_dim,
        )
        for tree_mask in tree_masks
        for soft_cap in soft_caps
        for head_dim in head_dims
        if v_head_dim is None or v_head_dim < head_dim
        for dtype in dtypes
        for page_size in page_sizes
        for shape in shapes
        for form in forms
    ]
