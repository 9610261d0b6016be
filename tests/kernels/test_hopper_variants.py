"""The default variants of the Hopper family: all render, and compile without spills or warnings.

What shapes the code is form, head_dim, decode_rows and how pages are found: compiled in full for
bfloat16 over pages. Of contiguous caches, of scores that are capped, of trees and of float16, which
differs by an opcode, each form and head_dim is compiled with decode_rows in turn, or with all where
registers are fewest. TEST_EVERY_VARIANT=1 compiles them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from variant_support import EVERY_VARIANT, require_clean

from podrt.jit import Build, cache_key
from podrt.kernels.hopper.config import DECODE_ROWS, HEAD_DIMS, HopperConfig, decode_rows_of
from podrt.kernels.hopper.host import source_of
from podrt.kernels.hopper.presets import (
    default_hopper_variants,
    has_large_tile,
    hopper_variant,
    why_unsupported,
)
from podrt.kernels.variant import DEFAULT_HEAD_DIMS, DEFAULT_PAGE_SIZES, Form
from podrt.spec.types import DType

FORMS: tuple[Form, ...] = get_args(Form)


pytestmark = pytest.mark.usefixtures("compiled_once")


def build_clean(configs: list[HopperConfig]) -> None:
    """Compile `configs`; none may spill, warn, or want more registers than its launch has."""
    require_clean(configs, complaints_of)


def complaints_of(config: HopperConfig, build: Build) -> Iterator[str]:
    used = build.resources
    if used.registers > config.launch_registers:
        yield f"{used.registers} registers, launched with {config.launch_registers}"
    smem_bytes = config.smem_bytes + used.static_smem_bytes
    if smem_bytes > config.limits.smem_per_cta_bytes:
        yield f"{smem_bytes} bytes of shared memory with static variables"


def some(*head_dims: int) -> tuple[int, ...]:
    """Return these, or all with TEST_EVERY_VARIANT=1: each takes some ten seconds to compile."""
    return HEAD_DIMS if EVERY_VARIANT else head_dims


def rows_in_turn(form: Form, head_dim: int) -> tuple[int, ...]:
    """Return one of decode_rows, another one for the next form or head_dim; see `some`."""
    rows = decode_rows_of(head_dim) if form != "prefill" else DECODE_ROWS[:1]
    number = FORMS.index(form) + HEAD_DIMS.index(head_dim)
    return rows if EVERY_VARIANT else rows[number % len(rows) :][:1]


@pytest.mark.parametrize(
    ("head_dim", "page_size"),
    [
        *itertools.product(DEFAULT_HEAD_DIMS, DEFAULT_PAGE_SIZES),
        *((head_dim, 16) for head_dim in some(96, 192) if head_dim not in DEFAULT_HEAD_DIMS),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_every_variant_compiles_without_spills(
    form: Form, page_size: int | None, head_dim: int
) -> None:
    configs = default_hopper_variants(
        forms=[form], dtypes=["bfloat16"], head_dims=[head_dim], page_sizes=[page_size]
    )
    prefills = 1 + has_large_tile(head_dim)
    plain = [config for config in configs if not config.head_pairs]
    assert len(plain) == (prefills if form == "prefill" else len(decode_rows_of(head_dim)))
    assert len(configs) - len(plain) == (2 if head_dim == 96 and form != "prefill" else 0)
    if page_size is None and form != "prefill":
        configs = [each for each in configs if each.decode_rows in rows_in_turn(form, head_dim)]
    build_clean(configs)


@pytest.mark.parametrize("head_dim", some(128))
@pytest.mark.parametrize("form", FORMS)
def test_kernels_that_gather_rows_compile_without_spills(form: Form, head_dim: int) -> None:
    """Pages of 12 take most registers: page and token are both to be found."""
    build_clean(
        default_hopper_variants(
            forms=[form], dtypes=["bfloat16"], head_dims=[head_dim], page_sizes=[12]
        )
    )


@pytest.mark.parametrize("tree_mask", [False, True])
@pytest.mark.parametrize("head_dim", some(128))
def test_fused_kernels_that_gather_rows_and_cap_scores_compile_without_spills(
    head_dim: int, tree_mask: bool
) -> None:
    configs = default_hopper_variants(
        forms=["pod"],
        dtypes=["bfloat16"],
        head_dims=[head_dim],
        page_sizes=[12],
        soft_caps=[True],
        tree_masks=[tree_mask],
    )
    rows = decode_rows_of(head_dim, 12) if tree_mask else rows_in_turn("pod", head_dim)
    build_clean([config for config in configs if config.decode_rows in rows])


@pytest.mark.parametrize("soft_cap", [False, True])
@pytest.mark.parametrize("form", ["pod", "decode"])
def test_kernels_for_heads_in_pairs_compile_without_spills(form: Form, soft_cap: bool) -> None:
    build_clean(
        [
            hopper_variant(
                form,
                dtype,
                96,
                decode_rows=rows,
                page_size=page_size,
                causal=page_size is not None,
                soft_cap=soft_cap,
                tree_mask=tree_mask,
                head_pairs=True,
            )
            for rows in (8, 16)
            for dtype, page_size, tree_mask in (
                ("bfloat16", 16, False),
                ("bfloat16", 16, True),
                ("float16", 8, True),
                ("float16", None, False),
            )
        ]
    )


@pytest.mark.parametrize("form", FORMS)
def test_pages_of_one_token_and_of_8_compile_without_spills(form: Form) -> None:
    build_clean(
        [hopper_variant(form, "bfloat16", 128, page_size=page_size) for page_size in (1, 8)]
    )


@pytest.mark.parametrize("head_dim", some(64, 128, 256))
@pytest.mark.parametrize("form", FORMS)
def test_kernels_with_a_soft_cap_compile_without_spills(form: Form, head_dim: int) -> None:
    rows = rows_in_turn(form, head_dim)
    if head_dim == 128 and form != "prefill":  # that of most models
        rows = decode_rows_of(head_dim)
    build_clean(
        [
            hopper_variant(
                form, "bfloat16", head_dim, decode_rows=count, page_size=16, soft_cap=True
            )
            for count in rows
        ]
    )


@pytest.mark.parametrize("soft_cap", [False, True])
@pytest.mark.parametrize("head_dim", some(128))
def test_kernels_for_trees_compile_without_spills(head_dim: int, soft_cap: bool) -> None:
    build_clean(
        [
            hopper_variant(
                form,
                "bfloat16",
                head_dim,
                decode_rows=count,
                page_size=16,
                soft_cap=soft_cap,
                tree_mask=True,
            )
            for form in FORMS
            for count in (decode_rows_of(head_dim) if form != "prefill" else DECODE_ROWS[:1])
            if (soft_cap and form == "pod") or count in rows_in_turn(form, head_dim)
        ]
    )


@pytest.mark.parametrize(
    ("page_size", "soft_cap", "tree_mask"), [(16, False, False), (4, True, True)]
)
def test_values_narrower_than_keys_compile_without_spills(
    page_size: int, soft_cap: bool, tree_mask: bool
) -> None:
    configs = default_hopper_variants(
        forms=FORMS if page_size == 16 else ["pod"],
        dtypes=["bfloat16"],
        head_dims=[192],
        v_head_dim=128,
        page_sizes=[page_size],
        soft_caps=[soft_cap],
        tree_masks=[tree_mask],
    )
    plain_pods = [config for config in configs if config.form == "pod" and not soft_cap]
    others = [c for c in configs if c.decode_rows in rows_in_turn(c.form, c.head_dim)]
    build_clean(list(dict.fromkeys([*plain_pods, *others])))


def test_every_variant_of_narrower_values_can_be_made() -> None:
    options: dict[str, Any] = {"page_sizes": (None, 1, 8, 16), "dtypes": ["float16"]}
    options |= {"soft_caps": (False, True), "tree_masks": (False, True), "head_dims": HEAD_DIMS}
    found = default_hopper_variants(**options, v_head_dim=128)
    assert {(config.head_dim, config.value_dim) for config in found} == {(192, 128)}
    assert len(found) == 4 * 2 * 2 * 7
    assert default_hopper_variants(**options, v_head_dim=64) == []


def of_other_values() -> list[HopperConfig]:
    """float16 in every form and tile, over pages of all sizes, with and without a mask."""
    page_sizes = (None, 16, 32, 64, 128, 256)
    rows = [
        (form, head_dim, decode_rows)
        for form in FORMS
        for head_dim in HEAD_DIMS
        for decode_rows in (decode_rows_of(head_dim) if form != "prefill" else DECODE_ROWS[:1])
    ]
    return [
        hopper_variant(
            form,
            "float16",
            head_dim,
            decode_rows=decode_rows,
            page_size=page_sizes[number % len(page_sizes)],
            causal=number % 2 == 0,
        )
        for number, (form, head_dim, decode_rows) in enumerate(rows)
        if decode_rows in rows_in_turn(form, head_dim)
    ]


@pytest.mark.parametrize("half", [0, 1])
def test_other_values_compile_without_spills(half: int) -> None:
    build_clean(of_other_values()[half::2])


def test_every_variant_renders_as_a_text_of_its_own() -> None:
    configs = default_hopper_variants(page_sizes=(None, 1, 4, 8, 12, 16, 32, 64, 128, 256))
    sources = [source_of(config) for config in configs]
    for config, source in zip(configs, sources, strict=True):
        assert (source.name, source.entry, source.arch) == (config.name, config.name, "sm_90a")
        assert f"{config.name}(const __grid_constant__ Params p)" in source.text
        assert f"kPageSize = {config.page_size or 0};" in source.text
        assert f"kDecodeRows = {config.decode_rows};" in source.text
        assert "{{" not in source.text
    assert len({cache_key(source) for source in sources}) == len(sources)


def test_filters_select() -> None:
    everything = default_hopper_variants()
    # pod and decode once for each decode_rows, prefill once or, for head_dim 128, twice.
    of_a_page_size = 1 + sum(
        2 * len(decode_rows_of(head_dim)) + 1 for head_dim in DEFAULT_HEAD_DIMS
    )
    assert len(everything) == len(get_args(DType)) * len(DEFAULT_PAGE_SIZES) * of_a_page_size
    few = default_hopper_variants(
        forms=iter(["pod", "decode"]), head_dims=iter([64]), dtypes=iter(["float16"])
    )
    assert set(few) < set(everything)
    assert {config.form for config in few} == {"pod", "decode"}
    assert {(config.head_dim, config.dtype) for config in few} == {(64, "float16")}
    assert default_hopper_variants(forms=[]) == []


def test_filters_of_other_families_pass_through() -> None:
    assert default_hopper_variants(head_dims=[72]) == []
    assert {c.page_size for c in default_hopper_variants(page_sizes=[1, 32])} == {1, 32}


def test_prefill_does_not_depend_on_decode_rows() -> None:
    prefills = {hopper_variant("prefill", "float16", 64, decode_rows=rows) for rows in DECODE_ROWS}
    assert len(prefills) == 1


def test_large_tiles_are_of_prefill_alone_at_80_to_128() -> None:
    tiles = {
        (head_dim, large): hopper_variant("prefill", "float16", head_dim, large_tile=large).kv_tile
        for head_dim in HEAD_DIMS
        for large in (False, True)
    }
    large = {which for which, tile in tiles.items() if tile > 128}
    assert large == {(head_dim, True) for head_dim in (80, 96, 112, 128)}
    capped = hopper_variant("prefill", "float16", 128, large_tile=True, soft_cap=True)
    assert capped.kv_tile == 128
    assert has_large_tile(128)
    assert not has_large_tile(128, soft_cap=True)
    # Pages of 8 are 22 pieces of a tile, whose last blocks are no whole ones at 96.
    assert has_large_tile(128, page_size=8) and not has_large_tile(96, page_size=8)
    assert has_large_tile(96, page_size=16) and not has_large_tile(96, page_size=4)
    assert has_large_tile(128, page_size=4)
    for form in ("pod", "decode"):
        small, large = (hopper_variant(form, "float16", 128, large_tile=t) for t in (False, True))
        assert small == large


@pytest.mark.parametrize(
    ("head_dim", "group", "expected"),
    [
        (128, 4, True),
        (64, 128, True),
        (256, 4, True),
        (192, 4, True),
        (96, 4, True),
        (160, 4, False),
        (72, 4, False),
        (128, 129, False),
    ],
)
def test_layers_that_the_family_serves(head_dim: int, group: int, expected: bool) -> None:
    assert (why_unsupported("sm_90a", head_dim, group) is None) is expected


def test_values_that_the_family_serves() -> None:
    assert why_unsupported("sm_90a", 192, 128, 128) is None
    told = why_unsupported("sm_90a", 192, 1, 64)
    assert told == "v_head_dim=64; with head_dim=192 allowed are 128, 192"
    told = why_unsupported("sm_90a", 128, 1, 64)
    assert told == "v_head_dim=64; with head_dim=128 allowed are 128"
