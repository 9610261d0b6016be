"""The default variants of the Hopper family."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

from podrt.kernels.hopper.budgets import (
    LARGE_PREFILL_TILES,
    PAIRS,
    Dims,
    decode_budget,
    decode_slots,
    pod_budget,
    prefill_budget,
)
from podrt.kernels.hopper.config import (
    BLOCK_COLUMNS,
    DECODE_ROWS,
    HEAD_DIMS,
    HOPPER_ARCH,
    V_HEAD_DIMS,
    HopperConfig,
    decode_rows_of,
    fits_a_warp,
    gathers_rows,
    may_pair_heads,
)
from podrt.kernels.hopper.shared_memory import PREFILL_ROWS
from podrt.kernels.variant import DEFAULT_HEAD_DIMS, DEFAULT_PAGE_SIZES, Form
from podrt.spec.types import DType


def why_unsupported(
    arch: str, head_dim: int, group: int, v_head_dim: int | None = None
) -> str | None:
    """Say why the family has no kernel for that layer on that architecture; None if it has one."""
    if arch != HOPPER_ARCH:
        return f"it needs an {HOPPER_ARCH} GPU; this one is {arch}"
    if head_dim not in HEAD_DIMS:
        return f"head_dim={head_dim}; allowed are {HEAD_DIMS}"
    if v_head_dim is not None and v_head_dim not in V_HEAD_DIMS.get(head_dim, ()):
        allowed = ", ".join(map(str, (*V_HEAD_DIMS.get(head_dim, ()), head_dim)))
        return f"v_head_dim={v_head_dim}; with head_dim={head_dim} allowed are {allowed}"
    if group > PREFILL_ROWS:
        return f"{group} query heads share a KV head; at most {PREFILL_ROWS} are allowed"
    return None


def has_large_tile(head_dim: int, *, soft_cap: bool = False, page_size: int | None = None) -> bool:
    """Tell whether prefill alone has a larger tile too, for units of many keys.

    Not with capped scores, for which registers do not suffice, nor where pages are so small that a
    warp has not a lane for every copy of heads that 64 does not divide, or gathers their rows.
    """
    tile = LARGE_PREFILL_TILES.get(head_dim)
    if tile is None or soft_cap or (gathers_rows(page_size) and head_dim % BLOCK_COLUMNS):
        return False
    return fits_a_warp(head_dim, page_size, tile)


def hopper_variant(
    form: Form,
    dtype: DType,
    head_dim: int,
    *,
    decode_rows: int = 8,
    large_tile: bool = False,
    page_size: int | None = None,
    causal: bool = True,
    soft_cap: bool = False,
    tree_mask: bool = False,
    v_head_dim: int | None = None,
    head_pairs: bool = False,
) -> HopperConfig:
    """Return the default variant for a job.

    `large_tile` is of prefill alone, and `head_pairs` of decode, where there are such variants.
    """
    dims: Dims = head_dim if v_head_dim is None else (head_dim, v_head_dim)
    head_pairs = head_pairs and may_pair_heads(form, head_dim, decode_rows, page_size)
    if head_pairs:
        dims = PAIRS[head_dim]
    gathers = gathers_rows(page_size)
    if form == "pod":
        has = {"cap": soft_cap, "tree": tree_mask, "gather": gathers}
        budget = pod_budget(dims, decode_rows, {feature for feature in has if has[feature]})
    elif form == "decode":
        budget = decode_budget(gathers_rows=gathers)
    else:
        large = large_tile and has_large_tile(head_dim, soft_cap=soft_cap, page_size=page_size)
        budget = prefill_budget(dims, large_tile=large)
    return HopperConfig(
        form=form,
        dtype=dtype,
        head_dim=head_dim,
        decode_rows=decode_rows if form != "prefill" else DECODE_ROWS[0],
        decode_slots=decode_slots(form, dims, budget.kv_tile),
        **budget._asdict(),
        page_size=page_size,
        causal=causal,
        soft_cap=soft_cap,
        tree_mask=tree_mask,
        v_head_dim=v_head_dim,
        head_pairs=head_pairs,
    )


def unpaired(config: HopperConfig) -> HopperConfig:
    """Return what runs the plans of a variant for heads in pairs, where they do not lie so.

    What is fixed of prefill (`podrt.policy.policies.FixedTiles`) stays so; a decode ring, whose
    slots are others, is the usual one.
    """
    usual, alone = (
        hopper_variant(
            config.form,
            config.dtype,
            config.head_dim,
            decode_rows=config.decode_rows,
            page_size=config.page_size,
            causal=config.causal,
            soft_cap=config.soft_cap,
            tree_mask=config.tree_mask,
            head_pairs=head_pairs,
        )
        for head_pairs in (True, False)
    )
    fixed = [n for n in ("kv_tile", "stages") if getattr(config, n) != getattr(usual, n)]
    return replace(alone, **{name: getattr(config, name) for name in fixed})


def default_hopper_variants(
    *,
    forms: Iterable[Form] = get_args(Form),
    dtypes: Iterable[DType] = get_args(DType),
    head_dims: Iterable[int] = DEFAULT_HEAD_DIMS,
    decode_rows: Iterable[int] = DECODE_ROWS,
    page_sizes: Iterable[int | None] = DEFAULT_PAGE_SIZES,
    soft_caps: Iterable[bool] = (False,),
    tree_masks: Iterable[bool] = (False,),
    v_head_dim: int | None = None,
) -> list[HopperConfig]:
    """Return the causal variants that a schedule may pick, as the filters allow.

    With a `v_head_dim` heads that may have such narrower values; there are no others.
    """
    forms, decode_rows, head_dims = tuple(forms), tuple(decode_rows), tuple(head_dims)
    page_sizes, dtypes, soft_caps = tuple(page_sizes), tuple(dtypes), tuple(soft_caps)
    found = [
        hopper_variant(
            form,
            dtype,
            head_dim,
            decode_rows=rows,
            large_tile=large,
            page_size=page_size,
            soft_cap=soft_cap,
            tree_mask=tree_mask,
            v_head_dim=v_head_dim,
            head_pairs=head_pairs,
        )
        for tree_mask in tree_masks
        for soft_cap in soft_caps
        for head_dim in head_dims
        if head_dim in HEAD_DIMS
        if v_head_dim is None or v_head_dim in V_HEAD_DIMS.get(head_dim, ())
        for dtype in dtypes
        for page_size in page_sizes
        for form in forms
        for rows in (decode_rows if form != "prefill" else DECODE_ROWS[:1])
        if rows in decode_rows_of(head_dim, page_size)
        for large in (False, True)
        for head_pairs in (False, True)
    ]
    return list(dict.fromkeys(found))  # most have no larger tile, and no pairs
