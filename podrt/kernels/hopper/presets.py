"""The default variants of the Hopper family."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, get_args

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
)
from podrt.kernels.hopper.shared_memory import PREFILL_ROWS
from podrt.kernels.variant import DEFAULT_HEAD_DIMS, DEFAULT_PAGE_SIZES, Form
from podrt.spec.types import DType


class _Pod(NamedTuple):
    """Budget of a fused kernel: keys of a prefill tile, and registers by role."""

    kv_tile: int
    producer_registers: int
    decode_registers: int
    prefill_registers: int


#: The size of heads in the tables below: head_dim, with v_head_dim where values are narrower.
Dims = int | tuple[int, int]

#: By (dims, decode_rows): decode gets the registers that it needs without spilling, prefill the
#: rest. A tile is smaller than 128 keys where registers are too few for it, or shared memory for it
#: beside a decode ring of four tiles.
_PODS: dict[tuple[Dims, int], _Pod] = {
    (64, 8): _Pod(128, 40, 136, 168),
    (64, 16): _Pod(128, 40, 136, 168),
    (64, 32): _Pod(128, 40, 120, 176),
    (80, 8): _Pod(112, 40, 104, 184),
    (80, 16): _Pod(112, 40, 104, 184),
    (80, 32): _Pod(96, 40, 120, 176),
    (96, 8): _Pod(112, 40, 88, 192),
    (96, 16): _Pod(112, 40, 88, 192),
    (96, 32): _Pod(96, 40, 120, 176),
    (112, 8): _Pod(112, 40, 72, 200),
    (112, 16): _Pod(112, 40, 88, 192),
    (112, 32): _Pod(96, 40, 120, 176),
    (128, 8): _Pod(112, 40, 104, 184),
    (128, 16): _Pod(112, 40, 80, 192),
    (128, 32): _Pod(96, 40, 120, 176),
    (192, 8): _Pod(80, 40, 72, 200),
    (192, 16): _Pod(80, 40, 72, 200),
    (192, 32): _Pod(64, 40, 120, 176),
    ((192, 128), 8): _Pod(96, 40, 104, 184),
    ((192, 128), 16): _Pod(96, 40, 104, 184),
    ((192, 128), 32): _Pod(80, 40, 120, 176),
    (256, 8): _Pod(48, 40, 72, 200),
    (256, 16): _Pod(48, 32, 80, 200),
}
#: The same where scores are capped, if other than that: prefill needs a few registers more.
_SOFT_CAP_PODS: dict[tuple[Dims, int], _Pod] = {
    (64, 8): _Pod(128, 40, 120, 176),
    (64, 16): _Pod(128, 40, 120, 176),
    (112, 32): _Pod(96, 40, 136, 168),
}
#: Where decodes have trees, whose masks need a few registers, and scores are not capped.
_TREE_PODS: dict[tuple[Dims, int], _Pod] = {
    (80, 16): _Pod(96, 40, 104, 184),
    (96, 16): _Pod(96, 40, 88, 192),
}
#: Those of kernels that gather rows where scores are capped or decodes have trees.
_GATHER_PODS: dict[tuple[Dims, int], _Pod] = {
    **{(head_dim, 32): _Pod(80, 40, 136, 168) for head_dim in (80, 96, 112, 128)},
    (128, 8): _Pod(96, 40, 104, 184),
    (192, 16): _Pod(80, 40, 88, 192),
}
#: Where scores are capped and decodes have trees.
_TREE_SOFT_CAP_PODS: dict[tuple[Dims, int], _Pod] = {
    **{(64, rows): _Pod(112, 40, 120, 176) for rows in DECODE_ROWS},
    (112, 16): _Pod(96, 40, 88, 192),
    (128, 16): _Pod(112, 40, 104, 184),
}
#: Those with both, and smaller tiles.
_TREE_SOFT_CAP_GATHER_PODS: dict[tuple[Dims, int], _Pod] = {
    **{(64, rows): _Pod(96, 40, 120, 176) for rows in DECODE_ROWS},
    **{(head_dim, 32): _Pod(80, 40, 136, 168) for head_dim in (80, 96, 128)},
    (128, 8): _Pod(96, 40, 104, 184),
    (128, 16): _Pod(80, 40, 104, 184),
    (192, 16): _Pod(64, 40, 88, 192),
}
#: Depth of the decode ring, by form, dims and keys of a prefill tile: what shared memory has
#: left, but for decode alone at head_dim 64, where less on its way is read faster
#: (`bench/results/h100/decode-ring.json`).
_DECODE_SLOTS: dict[tuple[Form, Dims, int], int] = {
    ("pod", 64, 128): 8,
    ("pod", 64, 112): 8,
    ("pod", 64, 96): 8,
    ("pod", 128, 112): 4,
    ("pod", 128, 96): 4,
    ("pod", 128, 80): 4,
    ("decode", 64, 128): 5,
    ("decode", 128, 128): 4,
    ("pod", 192, 80): 5,
    ("pod", 192, 64): 6,
    ("pod", 192, 48): 6,
    ("decode", 192, 128): 11,
    ("pod", (192, 128), 96): 5,
    ("pod", (192, 128), 80): 6,
    ("decode", (192, 128), 128): 11,
    ("pod", 256, 48): 3,
    ("decode", 256, 128): 6,
}
#: Keys of a prefill tile without decode, by dims, and the larger one if there is any. With
#: larger tiles queries are read from shared memory less often, and a unit takes longer to begin and
#: to end (`bench/results/h200/NOTES.md`).
_PREFILL_TILES: dict[Dims, int] = {
    **dict.fromkeys((64, 80, 96, 112, 128, (192, 128)), 128),
    192: 112,
    256: 80,
}
_LARGE_PREFILL_TILES: dict[Dims, int] = {80: 176, 96: 176, 112: 176, 128: 176}


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
    tile = _LARGE_PREFILL_TILES.get(head_dim)
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
) -> HopperConfig:
    """Return the default variant for a job; `large_tile` is of prefill alone, where it has one."""
    dims: Dims = head_dim if v_head_dim is None else (head_dim, v_head_dim)
    if form == "pod":
        pods = _PODS | _SOFT_CAP_PODS if soft_cap else _PODS
        if tree_mask and not soft_cap:
            pods = pods | _TREE_PODS
        if gathers_rows(page_size) and (soft_cap or tree_mask):
            pods = pods | _GATHER_PODS
        if soft_cap and tree_mask:
            pods = pods | _TREE_SOFT_CAP_PODS
            if gathers_rows(page_size):
                pods = pods | _TREE_SOFT_CAP_GATHER_PODS
        budget = pods[dims, decode_rows]
    elif form == "decode":
        # Registers are left over here.
        budget = _Pod(128, 48 if gathers_rows(page_size) else 40, 216, 232)
    else:
        large = large_tile and has_large_tile(head_dim, soft_cap=soft_cap, page_size=page_size)
        tile = (_LARGE_PREFILL_TILES if large else _PREFILL_TILES)[dims]
        budget = _Pod(tile, 40, 56, 232)
    return HopperConfig(
        form=form,
        dtype=dtype,
        head_dim=head_dim,
        decode_rows=decode_rows if form != "prefill" else DECODE_ROWS[0],
        decode_slots=_decode_slots(form, dims, budget.kv_tile),
        **budget._asdict(),
        page_size=page_size,
        causal=causal,
        soft_cap=soft_cap,
        tree_mask=tree_mask,
        v_head_dim=v_head_dim,
    )


def _decode_slots(form: Form, dims: Dims, kv_tile: int) -> int:
    """Return the depth of the decode ring; heads of 80 to 112 take the room of those of 128."""
    width = 128 if dims in (80, 96, 112) else dims
    return _DECODE_SLOTS.get((form, width, kv_tile), 2)


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
    ]
    return list(dict.fromkeys(found))  # most have no larger tile
