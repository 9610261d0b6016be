"""The default set of variants: all of it renders, and compiles without spills.

Compiling the whole set takes half an hour of CPU. What shapes the code is architecture, head_dim,
tiles, form and how pages are found, so these are compiled in full for one dtype on two
architectures, and half of them in turn on each other one and for the other dtype: what one leaves
out, the next one has. The other combinations differ by constants and by the opcode of a dtype: all
of them are rendered, and any two values of different fields are compiled together at least once,
but for head dims on the other architectures. TEST_EVERY_VARIANT=1 compiles what is left out too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import get_args

import pytest
from variant_support import EVERY_VARIANT, require_clean

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import ARCHS, DEFAULT_ARCHS
from podrt.gpu.occupancy import occupancy
from podrt.jit import Build, KernelSource, cache_key
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.portable.host import source_of
from podrt.kernels.portable.presets import (
    Shape,
    default_variants,
    preset,
    variant,
)
from podrt.kernels.variant import DEFAULT_HEAD_DIMS, DEFAULT_PAGE_SIZES, Form
from podrt.spec.types import HEAD_DIMS, DType

DTYPES: tuple[DType, ...] = get_args(DType)
SHAPES: tuple[Shape, ...] = get_args(Shape)
#: Every shape is compiled for these; they have what most GPUs in use have.
FULL_ARCHS = ("sm_80", "sm_90a")
#: Of each width of rows in shared memory the least and the largest, with half a product's columns
#: and with whole ones.
PAIRED_HEAD_DIMS = (32, 40, 64, 72, 96, 120, 128, 136, 192, 248, 256)


pytestmark = pytest.mark.usefixtures("compiled_once")


def build_clean(configs: list[KernelConfig]) -> None:
    """Compile `configs`; each must stay in its registers, fit as promised and warn of nothing."""
    require_clean(configs, complaints_of)


def complaints_of(config: KernelConfig, build: Build) -> Iterator[str]:
    used = build.resources
    resident = occupancy(
        config.limits,
        threads=config.threads,
        registers=used.registers,
        smem_bytes=config.smem_bytes + used.static_smem_bytes,
    )
    if resident.ctas_per_sm < config.ctas_per_sm:
        yield f"{resident.ctas_per_sm} CTAs per SM, limited by {', '.join(resident.limited_by)}"


@pytest.mark.parametrize("arch", DEFAULT_ARCHS)
@pytest.mark.parametrize("page_size", DEFAULT_PAGE_SIZES)
def test_every_shape_compiles_without_spills(arch: str, page_size: int | None) -> None:
    configs = default_variants(arch, dtypes=["bfloat16"], page_sizes=[page_size])
    assert len(configs) == len(DEFAULT_HEAD_DIMS) * len(SHAPES) * len(get_args(Form))
    if arch not in FULL_ARCHS:
        configs = half_of(configs, DEFAULT_ARCHS.index(arch), page_size)
    build_clean(configs)


@pytest.mark.parametrize("page_size", DEFAULT_PAGE_SIZES)
def test_every_shape_of_the_other_dtype_compiles_without_spills(page_size: int | None) -> None:
    configs = default_variants("sm_90a", dtypes=["float16"], page_sizes=[page_size])
    build_clean(half_of(configs, 0, page_size))


def half_of(configs: list[KernelConfig], number: int, page_size: int | None) -> list[KernelConfig]:
    """Return every second one, or all with TEST_EVERY_VARIANT=1.

    The next number, or the next page size, gets those that this one leaves out.
    """
    if EVERY_VARIANT:
        return configs
    return configs[(number + DEFAULT_PAGE_SIZES.index(page_size)) % 2 :: 2]


def all_pairwise() -> list[KernelConfig]:
    """Fused variants in which any two values of different fields meet; all architectures too."""
    rows = itertools.product(range(6), enumerate(PAIRED_HEAD_DIMS))
    return [
        variant(
            "pod",
            DEFAULT_ARCHS[(r + 2 * d) % len(DEFAULT_ARCHS)],
            DTYPES[(r + d) % 2],
            head_dim,
            shape=SHAPES[(r // 2 + d) % 2],
            page_size=DEFAULT_PAGE_SIZES[(r // 4 + r + d // 2) % 2],
            causal=bool((r // 2 + r + d) % 2),
            soft_cap=bool((r // 3 + d) % 2),
        )
        for r, (d, head_dim) in rows
    ]


def pairs_in(config: KernelConfig) -> set[tuple[object, ...]]:
    """Return the pairs of values that meet in a variant, but for those that are compiled seldom."""
    values = (
        ("arch", config.arch),
        ("dtype", config.dtype),
        ("head_dim", config.head_dim),
        ("shape", config.warps),
        ("page_size", config.page_size),
        ("causal", config.causal),
        ("soft_cap", config.soft_cap),
    )
    pairs = set(itertools.combinations(values, 2))
    if EVERY_VARIANT or config.arch in FULL_ARCHS:
        return pairs
    return pairs - {(("arch", config.arch), ("head_dim", config.head_dim))}


def pairwise() -> list[KernelConfig]:
    """Return few of them in which all pairs meet: whichever has most new ones, then the next."""
    configs = all_pairwise()
    left, chosen = set.union(*map(pairs_in, configs)), []
    while left:
        chosen.append(max(configs, key=lambda config: len(pairs_in(config) & left)))
        left -= pairs_in(chosen[-1])
    return chosen


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_capped_scores_compile_without_spills(arch: str) -> None:
    build_clean(
        default_variants(
            arch,
            forms=["pod"],
            dtypes=["bfloat16"],
            shapes=["large"],
            page_sizes=[16],
            soft_caps=[True],
        )
    )


@pytest.mark.parametrize("head_dim", [40, 192])
def test_rows_with_room_behind_the_head_compile_without_spills(head_dim: int) -> None:
    build_clean(
        default_variants(
            "sm_90a",
            forms=["pod"],
            head_dims=[head_dim],
            dtypes=["bfloat16"],
            shapes=["large"],
            page_sizes=[16],
            soft_caps=[False, True],
        )
    )


#: Values of a row's width in shared memory and of a shorter one, with half a product's columns.
@pytest.mark.parametrize(
    ("arch", "head_dim", "v_head_dim"),
    [("sm_90a", 192, 128), ("sm_80", 192, 128), ("sm_80", 256, 40), ("sm_90a", 128, 120)],
)
def test_values_narrower_than_keys_compile_without_spills(
    arch: str, head_dim: int, v_head_dim: int
) -> None:
    build_clean(
        default_variants(
            arch,
            forms=["pod"],
            head_dims=[head_dim],
            v_head_dim=v_head_dim,
            dtypes=["bfloat16"],
            shapes=["large"],
            page_sizes=[16],
        )
    )


def test_all_pairs_of_widths_have_a_variant() -> None:
    for v_head_dim in HEAD_DIMS[:-1]:
        found = default_variants(
            "sm_80", forms=["pod"], head_dims=HEAD_DIMS, v_head_dim=v_head_dim, dtypes=["float16"]
        )
        assert {variant.head_dim for variant in found} == {d for d in HEAD_DIMS if d > v_head_dim}
        assert {variant.value_dim for variant in found} == {v_head_dim}


@pytest.mark.parametrize("arch", ["sm_80"])
def test_kernels_for_trees_compile_without_spills(arch: str) -> None:
    build_clean(
        default_variants(
            arch,
            dtypes=["bfloat16"],
            shapes=["large"],
            page_sizes=[16],
            soft_caps=[False, True],
            tree_masks=[True],
        )
    )


def test_pairwise_choice_compiles_without_spills() -> None:
    chosen = pairwise()
    values = [2, 2, 2, 2, 2, len(PAIRED_HEAD_DIMS), len(DEFAULT_ARCHS)]
    pairs = sum(a * b for a, b in itertools.combinations(values, 2))
    seldom = 0 if EVERY_VARIANT else len(PAIRED_HEAD_DIMS) * (len(DEFAULT_ARCHS) - len(FULL_ARCHS))
    assert len(set.union(*map(pairs_in, chosen))) == pairs - seldom
    build_clean(chosen)


@pytest.fixture(scope="module")
def sources() -> dict[KernelConfig, KernelSource]:
    configs = [config for arch in ARCHS for config in default_variants(arch)]
    return {config: source_of(config) for config in configs}


def test_every_variant_renders(sources: dict[KernelConfig, KernelSource]) -> None:
    for config, source in sources.items():
        assert (source.name, source.entry, source.arch) == (config.name, config.name, config.arch)
        assert f"{config.name}(const __grid_constant__ Params p)" in source.text
        assert f"kPageSize = {config.page_size or 0};" in source.text
        assert "{{" not in source.text
        assert "{%" not in source.text


def test_keys_and_texts_are_unique(sources: dict[KernelConfig, KernelSource]) -> None:
    of_hopper = [source for config, source in sources.items() if config.arch == "sm_90a"]
    assert len({cache_key(source) for source in of_hopper}) == len(of_hopper)
    assert len({source.text for source in sources.values()}) == len(sources)


def test_filters_select() -> None:
    everything = default_variants("sm_90a")
    forms = len(get_args(Form))
    assert (
        len(everything)
        == len(DEFAULT_HEAD_DIMS) * len(DTYPES) * len(DEFAULT_PAGE_SIZES) * len(SHAPES) * forms
    )
    few = default_variants(
        "sm_90a", forms=iter(["pod", "decode"]), head_dims=iter([64]), dtypes=iter(["float16"])
    )
    assert set(few) < set(everything)
    assert {config.form for config in few} == {"pod", "decode"}
    assert {config.head_dim for config in few} == {64}
    assert default_variants("sm_90a", forms=[]) == []


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_small_shape_wastes_less_of_a_tile(arch: str, head_dim: int) -> None:
    large, small = (preset(arch, head_dim, shape) for shape in ("large", "small"))
    assert small.prefill.rows < large.prefill.rows
    assert small.ctas_per_sm == 2 * large.ctas_per_sm


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(UnsupportedConfigError, match="arch='sm_75'"):
        default_variants("sm_75")
