"""The default variants of the Hopper family."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from podrt.kernels.config import DType, Form
from podrt.kernels.hopper_config import DECODE_ROWS, HEAD_DIMS, PREFILL_ROWS, HopperConfig
from podrt.kernels.hopper_config import PAGE_SIZES as TMA_PAGE_SIZES

#: (producer, decode, prefill) registers of the fused kernel by decode_rows: the least that decode
#: needs without spilling, the rest to prefill.
_POD_REGISTERS = {8: (40, 56, 208), 16: (40, 72, 200), 32: (40, 88, 192)}
#: Depth of the decode ring, by form and head_dim: what shared memory has left.
_DECODE_SLOTS = {("pod", 64): 12, ("pod", 128): 3, ("decode", 64): 24, ("decode", 128): 12}
#: Page sizes of the default set; None is a contiguous cache.
PAGE_SIZES = (None, 16)


def supports(head_dim: int, group: int, page_size: int | None) -> bool:
    """Tell whether the family has a kernel for that layer."""
    return (
        head_dim in HEAD_DIMS
        and group <= PREFILL_ROWS
        and (page_size is None or page_size in TMA_PAGE_SIZES)
    )


def hopper_variant(
    form: Form,
    dtype: DType,
    head_dim: int,
    *,
    decode_rows: int = 8,
    page_size: int | None = None,
    causal: bool = True,
) -> HopperConfig:
    """Return the default variant for a job."""
    registers = {
        "pod": _POD_REGISTERS[decode_rows],
        "prefill": (40, 56, 232),
        "decode": (40, 216, 208),
    }[form]
    return HopperConfig(
        form=form,
        dtype=dtype,
        head_dim=head_dim,
        decode_rows=decode_rows if form != "prefill" else DECODE_ROWS[0],
        decode_slots=_DECODE_SLOTS.get((form, head_dim), 2),
        producer_registers=registers[0],
        decode_registers=registers[1],
        prefill_registers=registers[2],
        page_size=page_size,
        causal=causal,
    )


def default_hopper_variants(
    *,
    forms: Iterable[Form] = get_args(Form),
    dtypes: Iterable[DType] = get_args(DType),
    head_dims: Iterable[int] = HEAD_DIMS,
    decode_rows: Iterable[int] = DECODE_ROWS,
    page_sizes: Iterable[int | None] = PAGE_SIZES,
) -> list[HopperConfig]:
    """Return the causal variants that the dispatcher may pick, as the filters allow."""
    forms, decode_rows = tuple(forms), tuple(decode_rows)
    page_sizes, dtypes = tuple(page_sizes), tuple(dtypes)
    return [
        hopper_variant(form, dtype, head_dim, decode_rows=rows, page_size=page_size)
        for head_dim in head_dims
        if head_dim in HEAD_DIMS
        for dtype in dtypes
        for page_size in page_sizes
        if page_size is None or page_size in TMA_PAGE_SIZES
        for form in forms
        for rows in (decode_rows if form != "prefill" else DECODE_ROWS[:1])
    ]
