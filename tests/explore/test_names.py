"""Aliases, and the words that select variants."""

from __future__ import annotations

from typing import Any

import pytest

from podrt.explore.names import (
    alias_of,
    differences,
    grouped,
    narrow,
    parts_of,
    the_one,
    tiles_of,
)
from podrt.explore.select import completions, find, select
from podrt.kernels.hopper.presets import hopper_variant

HOPPER = select(archs=["sm_90a"], families=["hopper"])


def test_aliases_tell_all_variants_apart_and_find_them() -> None:
    variants = select(archs=["all"], masks=["causal", "full"], soft_caps=[False, True])
    aliases = [alias_of(variant) for variant in variants]
    assert len(set(aliases)) == len(variants)
    assert max(map(len, aliases)) <= 60
    for variant, alias in list(zip(variants, aliases, strict=True))[::37]:
        assert find([alias]) == find([variant.name]) == variant


def test_words_narrow_whatever_their_order() -> None:
    words = ["pod", "f16", "d64", "page16"]
    found = narrow(HOPPER, words)
    assert found == narrow(HOPPER, reversed(words)) == narrow(HOPPER, ["f16-pod", "d64-page16"])
    assert {parts_of(variant)[-1] for variant in found} == {"r8", "r16", "r32"}
    assert not any("bf16" in variant.name for variant in found)


def test_fields_select_by_value() -> None:
    assert {v.to_dict()["kv_tile"] for v in narrow(HOPPER, ["kv_tile=176"])} == {176}
    portable = select(archs=["sm_80"])
    rows = narrow(portable, ["prefill.rows=64", "causal=true"])
    assert {variant.to_dict()["prefill"]["rows"] for variant in rows} == {64}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("hoper", "try hopper"),
        ("pod-hopper-d129", "d128"),
        ("kv_tile=100", "kv_tile=112"),
        ("kv_tiles=112", "kv_tile"),
    ],
)
def test_a_word_that_selects_nothing_is_told_the_nearest(word: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        narrow(HOPPER, [word])


def test_several_are_told_apart() -> None:
    found = narrow(HOPPER, ["pod", "bf16", "d128", "page16"])
    assert differences(found) == ["r8", "r16", "r32"]
    with pytest.raises(ValueError, match=r"3 variants.*\(r8, r16, r32\)"):
        the_one(found, "pod")


@pytest.mark.parametrize(
    ("words", "page_size"),
    [
        (["pod", "hopper", "bf16", "d128", "page1", "r8"], 1),
        (["pod-hopper-bf16-d128-page12-r8"], 12),
        (["pod", "hopper", "bf16", "d128", "r8", "page_size=24"], 24),
        ([hopper_variant("pod", "bfloat16", 128, page_size=4).name], 4),
    ],
)
def test_pages_that_words_name_need_not_be_among_the_default_ones(
    words: list[str], page_size: int
) -> None:
    assert find(words, archs=["sm_90a"]).page_size == page_size


def test_words_mean_the_causal_variant_of_this_gpu() -> None:
    found = find(["pod", "portable", "bf16", "d128", "page16", "c2"])
    assert found.causal and found.arch == "sm_90a"
    assert not find(["pod", "portable", "bf16", "d128", "page16", "c2", "full"]).causal
    assert not found.soft_cap
    assert find(["pod", "portable", "bf16", "d128", "page16", "c2", "softcap"]).soft_cap


@pytest.mark.parametrize(
    ("word", "head_dim"),
    [("pod-hopper-bf16-d96-page16-r8", 96), ("pod-portable-sm_90a-bf16-d72-page16-c2", 72)],
)
def test_other_head_dims_are_found_where_a_word_names_them(word: str, head_dim: int) -> None:
    found = find([word])
    assert found.head_dim == head_dim
    assert find([found.name]) == found


def test_heads_in_pairs_are_meant_where_a_word_says_so() -> None:
    pair, one = (
        hopper_variant("pod", "bfloat16", 96, page_size=16, head_pairs=pairs)
        for pairs in (True, False)
    )
    words = ["pod", "hopper", "bf16", "d96", "page16", "r8"]
    assert alias_of(pair) == alias_of(one) + "-pairs" == "-".join([*words, "pairs"])
    assert find(words) == find([alias_of(one)]) == find([one.name]) == one
    assert find([*words, "pairs"]) == find([alias_of(pair)]) == find([pair.name]) == pair
    assert find([*words, "head_pairs=true"]) == pair
    assert tiles_of(pair).split()[:2] == ["p128x112s2", "d8x64s8"]


@pytest.mark.parametrize(
    "words",
    [
        ["pod-portable-sm_90a-bf16-d192v128-page16-c2"],
        ["pod-hopper-bf16-d192v128-page16-r8"],
        ["pod", "portable", "bf16", "page16", "c2", "head_dim=192", "v_head_dim=128"],
    ],
)
def test_narrower_values_are_found_where_a_word_names_them(words: list[str]) -> None:
    found = find(words, archs=["sm_90a"])
    assert (found.head_dim, found.v_head_dim) == (192, 128)
    assert find([found.name]) == found
    assert tiles_of(found).startswith("p64x64" if found.family == "portable" else "p128x96")


def test_values_are_as_wide_as_keys_unless_named() -> None:
    assert {variant.v_head_dim for variant in select(head_dims=[192])} == {None}
    assert {variant.v_head_dim for variant in select(head_dims=[192], v_head_dims=[128])} == {128}
    with pytest.raises(ValueError, match="v_head_dim=100: allowed are multiples of 8"):
        select(v_head_dims=[100])
    with pytest.raises(ValueError, match="v_head_dim=256: no variant has it; values are narrower"):
        select(v_head_dims=[128, 256])


@pytest.mark.parametrize("chosen", [{"v_head_dims": [128]}, {"words": ["v_head_dim=128"]}])
def test_narrower_values_alone_name_the_heads_that_hopper_has_them_for(chosen: Any) -> None:
    found = select(archs=["sm_90a"], **chosen)
    assert {v.head_dim for v in found if v.family == "hopper"} == {192}
    assert {v.head_dim for v in found if v.family == "portable"} == {192, 256}


def test_groups_share_all_but_types_and_pages() -> None:
    groups = grouped(HOPPER)
    assert sum(map(len, groups.values())) == len(HOPPER)
    assert all(len(group) == 4 for group in groups.values())
    assert "pod-hopper-d128-r8" in groups


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["pod", "hopper", "bf16", "d80", "page32", "r8"], "page32_causal"),
        (["pod-hopper-bf16-d128-page16-r8-tree"], "causal_tree"),
        (["pod", "hopper", "bf16", "d96", "page_size=64", "r16", "tree_mask=true"], "causal_tree"),
    ],
)
def test_words_name_head_dims_pages_and_trees_beyond_the_default_ones(
    words: list[str], end: str
) -> None:
    assert find(words).name.endswith(end)


def test_words_and_filters_select_together() -> None:
    trees = select(["pod", "hopper", "page16"], head_dims=[128], tree_masks=[True])
    assert trees == select(["pod", "hopper", "page16", "d128", "tree"])
    assert trees and all(v.tree_mask and v.head_dim == 128 and v.causal for v in trees)
    assert not any(v.tree_mask or v.soft_cap or not v.causal for v in select(["pod"]))


def test_full_masks_have_no_trees() -> None:
    with pytest.raises(ValueError, match="trees are causal"):
        select(masks=["full"], tree_masks=[True])
    assert not any(v.tree_mask for v in select(masks=["full"]))


def test_a_whole_word_goes_before_the_beginning_of_others() -> None:
    pages = {v.page_size for v in select(["portable", "d128", "page1"])}
    assert pages == {1}


def test_a_word_that_does_not_fit_those_before_it_says_so() -> None:
    with pytest.raises(ValueError, match="no variant of 'pod' has it in its name"):
        narrow(HOPPER, ["pod", "prefill"])
    with pytest.raises(ValueError, match="head dims are multiples of 8 from 32 to 256"):
        find(["pod", "hopper", "d81"])


def test_shells_complete_aliases_then_words() -> None:
    assert completions("pod-hopper-bf16-d80-page32-") == [
        f"pod-hopper-bf16-d80-page32-r{rows}" for rows in (8, 16, 32)
    ]
    assert "pod-hopper-bf16-d128-page16-r8-tree" in completions("pod-hopper-bf16-d128-page16-r8-")
    assert completions("hopp") == ["hopper"]
    assert completions("nonsense") == []
