"""The kernel families joined: which default variants an architecture has."""

from __future__ import annotations

from dataclasses import replace

import pytest

import podrt
from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import ARCHS
from podrt.kernels.families import FAMILIES, all_default_variants, source_of
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.presets import default_hopper_variants
from podrt.kernels.portable.presets import default_variants
from podrt.spec.attention import make_spec
from podrt.spec.mask import Mask


@pytest.mark.parametrize("arch", ARCHS)
def test_only_hopper_has_the_hopper_family(arch: str) -> None:
    hopper = default_hopper_variants() if arch == "sm_90a" else []
    assert all_default_variants(arch) == [*default_variants(arch), *hopper]


def test_names_are_unique_over_all_families() -> None:
    names = [config.name for arch in ARCHS for config in all_default_variants(arch)]
    assert len(set(names)) == len(names)


def test_filters_reach_both_families() -> None:
    found = all_default_variants(
        "sm_90a",
        forms=["pod"],
        dtypes=["float16"],
        head_dims=[64],
        page_sizes=[None],
        decode_rows=[32],
    )
    assert {(config.form, config.dtype, config.head_dim) for config in found} == {
        ("pod", "float16", 64)
    }
    assert {config.page_size for config in found} == {None}
    assert [c.decode_rows for c in found if isinstance(c, HopperConfig)] == [32]
    assert {config.family for config in found} == {"portable", "hopper"}


def test_filters_may_be_iterators() -> None:
    found = all_default_variants(
        "sm_90a", families=iter(["portable", "hopper"]), forms=iter(["pod"])
    )
    assert {config.family for config in found} == {"portable", "hopper"}


@pytest.mark.parametrize("family", ["portable", "hopper"])
def test_one_family_alone(family: str) -> None:
    assert {c.family for c in all_default_variants("sm_90a", families=[family])} == {family}


@pytest.mark.parametrize("arguments", [{"arch": "sm_75"}, {"arch": "sm_80", "families": ["x"]}])
@pytest.mark.parametrize("families", [["portable"], ["hopper"]])
def test_unknown_values_are_refused(arguments: dict[str, object], families: list[str]) -> None:
    with pytest.raises(UnsupportedConfigError, match=r"sm_75|family='x'"):
        all_default_variants(**{"families": families, **arguments})


def test_source_is_of_the_family_that_the_config_is_of() -> None:
    for config in (all_default_variants("sm_90a")[0], all_default_variants("sm_90a")[-1]):
        assert config.name in source_of(config).text


def test_hopper_config_is_public() -> None:
    assert podrt.HopperConfig is HopperConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_a_variant_serves_layers_that_it_is_compiled_for(family: str) -> None:
    (config, *_) = all_default_variants("sm_90a", families=[family], page_sizes=[16])
    layer = make_spec(8, 2, config.head_dim, 16, "NHD", config.dtype, True, 0.5)
    config.require_spec(layer)
    for change in ({"page_size": None}, {"mask": Mask(causal=False)}, {"dtype": "float16"}):
        with pytest.raises(ValueError, match=rf"{config.name}: is for KernelSpec\(.*the layer has"):
            config.require_spec(replace(layer, **change))
