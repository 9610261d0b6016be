"""`HopperConfig`: what it derives, and which limit it names when it refuses."""

from __future__ import annotations

import dataclasses
import re

import pytest

from podrt.errors import UnsupportedConfigError
from podrt.kernels.hopper import budgets
from podrt.kernels.hopper.config import HEAD_DIMS, KV_TILES, V_HEAD_DIMS, HopperConfig
from podrt.kernels.hopper.presets import default_hopper_variants, hopper_variant, unpaired
from podrt.kernels.hopper.shared_memory import lane_tiles, offsets_of

FUSED = hopper_variant("pod", "bfloat16", 128, page_size=16)


def changed(**fields: object) -> HopperConfig:
    return dataclasses.replace(FUSED, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "warpgroups", "lanes"), [("pod", 4, 3), ("prefill", 3, 0), ("decode", 3, 2)], ids=str
)
def test_a_warpgroup_for_each_role(form: str, warpgroups: int, lanes: int) -> None:
    config = hopper_variant(form, "bfloat16", 128)  # type: ignore[arg-type]
    assert (config.warpgroups, config.threads) == (warpgroups, 128 * warpgroups)
    assert config.lanes == lanes
    assert (config.has_prefill, config.has_decode) == (form != "decode", form != "prefill")
    assert config.ctas_per_sm == 1


@pytest.mark.parametrize(("form", "registers"), [("pod", 184), ("prefill", 232), ("decode", 216)])
def test_the_role_with_most_registers_counts(form: str, registers: int) -> None:
    assert hopper_variant(form, "bfloat16", 128).max_registers == registers  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "both"}, "form='both': allowed are 'pod', 'prefill', 'decode'"),
        ({"dtype": "float32"}, "dtype='float32': allowed are 'bfloat16', 'float16'"),
        ({"head_dim": 160}, "head_dim=160: allowed are 64, 80, 96, 112, 128, 192, 256"),
        ({"v_head_dim": 64}, "v_head_dim=64: allowed are None"),
        ({"head_dim": 192, "v_head_dim": 64}, "v_head_dim=64: allowed are None, 128"),
        ({"head_dim": 256, "decode_rows": 32}, "decode_rows=32: allowed are 8, 16"),
        ({"decode_rows": 64}, "decode_rows=64: allowed are 8, 16, 32"),
        ({"kv_tile": 72}, f"kv_tile=72: allowed are {', '.join(map(str, KV_TILES))}"),
        ({"page_size": 0}, "page_size=0: must be an int of at least 1, or None"),
        (
            {"head_dim": 96, "kv_tile": 176, "page_size": 8},
            "kv_tile=176: with head_dim=96 and page_size=8 a tile takes more than 32 copies",
        ),
        ({"page_size": True}, "page_size=True: must be an int of at least 1, or None"),
        (
            {"head_dim": 256, "decode_rows": 16, "page_size": 4},
            "decode_rows=16: allowed are 8",
        ),
        ({"arch": "sm_100"}, "arch='sm_100': allowed are 'sm_90a'"),
        ({"stages": 1}, "stages=1"),
        ({"decode_slots": 1}, "decode_slots=1: must be an int of at least 2"),
        ({"next_decode_slots": 1}, "next_decode_slots=1: must be an int of at least 2"),
        ({"head_pairs": 1}, "head_pairs=1: allowed are True, False"),
        ({"head_pairs": True}, "head_pairs=True: is of decode at head_dim=(96,) in tiles of"),
        ({"head_dim": 96, "head_pairs": True, "page_size": 4}, "decode_rows=8, page_size=4"),
        ({"head_dim": 96, "head_pairs": True, "decode_rows": 32}, "decode_rows=32, page_size=16"),
        ({"head_dim": 96, "head_pairs": True, "form": "prefill"}, "got form='prefill'"),
    ],
)
def test_refusal_names_field_value_and_what_is_allowed(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedConfigError, match=re.escape(message)):
        changed(**fields)


@pytest.mark.parametrize(
    ("config", "registers"),
    [
        (FUSED, {"prefill_registers": 205}),
        (FUSED, {"decode_registers": 16}),
        (FUSED, {"producer_registers": 264}),
    ],
)
def test_registers_of_a_role_are_in_steps_of_eight(
    config: HopperConfig, registers: dict[str, int]
) -> None:
    (value,) = registers.values()
    message = f"registers of a role are {value}: must be a multiple of 8 from 24 to 256"
    with pytest.raises(UnsupportedConfigError, match=message):
        dataclasses.replace(config, **registers)  # type: ignore[arg-type]


def test_registers_of_all_roles_fit_the_register_file() -> None:
    used = FUSED.producer_registers + FUSED.decode_registers + 2 * FUSED.prefill_registers
    over = 512 - used + FUSED.decode_registers + 8
    message = "registers of all roles add up to 520; 4 warpgroups have 512"
    with pytest.raises(UnsupportedConfigError, match=message):
        changed(decode_registers=over)
    prefill = hopper_variant("prefill", "bfloat16", 128)
    message = "add up to 520; 3 warpgroups have 504"
    with pytest.raises(UnsupportedConfigError, match=message):
        dataclasses.replace(prefill, producer_registers=40, prefill_registers=240)


def test_registers_of_a_role_that_is_absent_do_not_count() -> None:
    prefill = hopper_variant("prefill", "bfloat16", 128)
    assert dataclasses.replace(prefill, decode_registers=256).name == prefill.name


def test_shared_memory_beyond_a_cta_is_refused() -> None:
    most = 227 * 1024
    deep = dataclasses.replace(FUSED, decode_slots=2)
    while deep.smem_bytes + 64 * 128 * 2 <= most:
        deep = dataclasses.replace(deep, decode_slots=deep.decode_slots + 1)
    message = rf"needs \d+ bytes of shared memory in a CTA; sm_90a allows {most}"
    with pytest.raises(UnsupportedConfigError, match=message):
        dataclasses.replace(deep, decode_slots=deep.decode_slots + 2)


@pytest.mark.parametrize("decode_rows", [8, 16, 32])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192])
def test_later_lanes_fit_over_the_prefill_tiles(head_dim: int, decode_rows: int) -> None:
    pod = hopper_variant("pod", "bfloat16", head_dim, decode_rows=decode_rows)
    columns, of_slot = (-(-each // 64) * 64 for each in (head_dim, pod.decode_columns))
    prefill_bytes = (128 + 2 * pod.stages * pod.kv_tile) * columns * 2
    lane_bytes = decode_rows * (columns + pod.decode_tiles * 64) * 2
    lane_bytes += pod.next_slots * 64 * of_slot * 2
    assert pod.next_slots >= 3
    assert 2 * lane_bytes <= prefill_bytes < 2 * (lane_bytes + 64 * of_slot * 2)
    alone = hopper_variant("decode", "bfloat16", head_dim, decode_rows=decode_rows)
    assert alone.next_slots == alone.decode_slots


@pytest.mark.parametrize(
    ("page_size", "gathers"),
    [(None, False), (1, True), (4, True), (8, False), (12, True), (24, False), (256, False)],
)
def test_pages_that_are_no_groups_of_8_tokens_are_gathered(
    page_size: int | None, gathers: bool
) -> None:
    assert hopper_variant("pod", "bfloat16", 128, page_size=page_size).gathers_rows == gathers


def all_configs() -> list[HopperConfig]:
    page_sizes = (None, 1, 4, 8, 12, 16, 24, 32, 64, 128, 256)
    default = default_hopper_variants(page_sizes=page_sizes)
    return default + [dataclasses.replace(config, causal=False) for config in default]


def test_names_are_unique_and_safe_for_files() -> None:
    configs = all_configs()
    assert len(set(configs)) == len(configs)
    assert len({config.name for config in configs}) == len(configs)
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", config.name) for config in configs)


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "float16"},
        {"head_dim": 64},
        {"decode_rows": 16, "decode_registers": 24},
        {"kv_tile": 64},
        {"decode_slots": 2},
        {"next_decode_slots": 2},
        {"decode_registers": 24},
        {"producer_registers": 24},
        {"prefill_registers": 128},
        {"page_size": None},
        {"causal": False},
        {"soft_cap": True},
        {"tree_mask": True},
    ],
    ids=str,
)
def test_every_field_is_in_the_name(fields: dict[str, object]) -> None:
    other = changed(**fields)
    assert other != FUSED
    assert other.name != FUSED.name


@pytest.mark.parametrize("decode_rows", [8, 16])
@pytest.mark.parametrize("form", ["pod", "decode"])
def test_pairs_of_heads_have_the_rows_of_both_and_slots_of_a_third(
    form: str, decode_rows: int
) -> None:
    pair, one = (
        hopper_variant(form, "bfloat16", 96, decode_rows=decode_rows, head_pairs=pairs)  # type: ignore[arg-type]
        for pairs in (True, False)
    )
    assert pair.name.endswith("_causal_pairs") and not one.name.endswith("pairs")
    assert (pair.spec, pair.decode_rows) == (one.spec, one.decode_rows)
    assert (pair.decode_heads, pair.decode_dim, pair.decode_columns) == (2, 192, 64)
    assert (one.decode_heads, one.decode_dim, one.decode_columns) == (1, 96, 96)
    lane = offsets_of(lane_tiles(pair, pair.next_slots))
    assert lane["LaneP"] == 2 * decode_rows * 256  # padded to 128 columns
    assert lane["LaneRing"] - lane["LaneP"] == 2 * decode_rows * 128
    assert lane["End"] - lane["LaneRing"] == pair.next_slots * 64 * 128
    assert pair.next_slots >= 6  # K and V of a step
    assert unpaired(pair) == one
    assert hopper_variant("prefill", "bfloat16", 96, head_pairs=True).head_pairs is False


def test_what_is_fixed_of_prefill_holds_for_heads_that_are_not_in_pairs() -> None:
    pair, one = (hopper_variant("pod", "bfloat16", 96, head_pairs=pairs) for pairs in (True, False))
    fixed = {"kv_tile": 64, "stages": 3}
    assert unpaired(dataclasses.replace(pair, **fixed)) == dataclasses.replace(one, **fixed)  # type: ignore[arg-type]
    assert unpaired(dataclasses.replace(pair, decode_slots=6, next_decode_slots=6)) == one


def test_to_dict_makes_the_same_config() -> None:
    assert HopperConfig(**FUSED.to_dict()) == FUSED


def test_narrower_values_are_in_the_name_and_take_less_of_shared_memory() -> None:
    like = hopper_variant("prefill", "bfloat16", 192)
    unlike = dataclasses.replace(like, v_head_dim=128)
    assert unlike.name == like.name.replace("_d192_", "_d192v128_")
    assert like.smem_bytes - unlike.smem_bytes == like.stages * like.kv_tile * 64 * 2
    assert (unlike.value_dim, unlike.value_columns, unlike.decode_columns) == (128, 128, 64)


def dims_of(variant: HopperConfig) -> budgets.Dims:
    if variant.head_pairs:
        return budgets.PAIRS[variant.head_dim]
    if variant.v_head_dim is None:
        return variant.head_dim
    return variant.head_dim, variant.v_head_dim


def test_every_depth_of_a_decode_ring_is_that_of_some_variant() -> None:
    wide = default_hopper_variants(
        head_dims=HEAD_DIMS, page_sizes=(1, 16), soft_caps=(False, True), tree_masks=(False, True)
    )
    narrow = [
        variant
        for head_dim, narrower in V_HEAD_DIMS.items()
        for v_head_dim in narrower
        for variant in default_hopper_variants(head_dims=[head_dim], v_head_dim=v_head_dim)
    ]
    used = {(v.form, dims_of(v), v.kv_tile) for v in (*wide, *narrow)}
    assert set(budgets._DECODE_SLOTS) <= used
