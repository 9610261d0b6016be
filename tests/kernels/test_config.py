"""`KernelConfig`: what it works out, and what it refuses with which words."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import ARCHS, DEFAULT_ARCHS, KIB
from podrt.kernels.portable.config import KernelConfig, Tile
from podrt.kernels.portable.presets import default_variants, variant
from podrt.spec.types import HEAD_DIMS

BASE = KernelConfig(
    form="pod",
    arch="sm_90a",
    dtype="bfloat16",
    head_dim=128,
    prefill=Tile(rows=128, kv_tile=32, kv_slots=4),
    decode=Tile(rows=16, kv_tile=16, kv_slots=3),
    warps=4,
    ctas_per_sm=2,
    page_size=16,
)


def changed(**fields: object) -> KernelConfig:
    return dataclasses.replace(BASE, **fields)


def test_shared_memory_is_that_of_the_larger_role() -> None:
    assert BASE.threads == 128
    # Q tile and four slots of keys or values; 2-byte elements.
    assert BASE.prefill_smem_bytes == (128 + 4 * 32) * 128 * 2
    # Four warps with three slots of 16 rows each.
    assert BASE.decode_smem_bytes == 4 * 3 * 16 * 128 * 2
    assert BASE.smem_bytes == BASE.prefill_smem_bytes
    assert changed(form="decode").smem_bytes == BASE.decode_smem_bytes
    assert changed(form="decode").has_prefill is False
    assert changed(form="prefill").has_decode is False


@pytest.mark.parametrize(
    ("warps", "ctas_per_sm", "registers"), [(4, 2, 255), (4, 4, 128), (2, 6, 168)]
)
def test_register_limit_lets_all_ctas_fit(warps: int, ctas_per_sm: int, registers: int) -> None:
    config = changed(
        warps=warps,
        ctas_per_sm=ctas_per_sm,
        head_dim=64,
        prefill=Tile(16 * warps, 32, 2),
        decode=Tile(16, 16, 2),
    )
    assert config.max_registers == registers
    assert config.max_registers * config.threads * ctas_per_sm <= 65536


def test_name_says_what_it_is() -> None:
    assert BASE.name == ("pod_portable_sm_90a_bf16_d128_p128x32s4_d16x16s3_w4c2_page16_causal")
    alone = changed(form="decode", dtype="float16", page_size=None, causal=False)
    assert alone.name == ("decode_portable_sm_90a_f16_d128_d16x16s3_w4c2_contiguous_full")


OTHERS: list[dict[str, object]] = [
    {"form": "prefill"},
    {"form": "decode"},
    {"arch": "sm_100"},
    {"dtype": "float16"},
    {"head_dim": 64},
    {"prefill": Tile(64, 32, 4)},
    {"prefill": Tile(128, 64, 4)},
    {"prefill": Tile(128, 32, 3)},
    {"decode": Tile(16, 32, 3)},
    {"decode": Tile(16, 16, 2)},
    {"warps": 8, "ctas_per_sm": 1},
    {"ctas_per_sm": 1},
    {"page_size": None},
    {"page_size": 32},
    {"causal": False},
    {"soft_cap": True},
    {"tree_mask": True},
    {"v_head_dim": 64},
]


def test_every_field_shows_in_the_name() -> None:
    names = [changed(**fields).name for fields in OTHERS]
    assert len({BASE.name, *names}) == 1 + len(OTHERS)
    assert {field for fields in OTHERS for field in fields} == {
        field.name for field in dataclasses.fields(KernelConfig)
    }


def test_names_of_all_default_variants_are_unique() -> None:
    names = [config.name for arch in ARCHS for config in default_variants(arch)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) for name in names)


def test_to_dict_is_plain_and_complete() -> None:
    fields = json.loads(json.dumps(BASE.to_dict()))
    tiles = {side: Tile(**fields.pop(side)) for side in ("prefill", "decode")}
    assert KernelConfig(**fields, **tiles) == BASE


def test_is_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.warps = 8  # type: ignore[misc]
    assert len({BASE, changed(), changed(warps=8, ctas_per_sm=1)}) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "both"}, "form='both': allowed are 'pod', 'prefill', 'decode'"),
        ({"dtype": "float32"}, "dtype='float32': allowed are 'bfloat16', 'float16'"),
        ({"head_dim": 100}, "head_dim=100: allowed are multiples of 8 from 32 to 256"),
        ({"arch": "sm_70"}, "arch='sm_70': known are sm_80"),
        ({"warps": 0}, "warps=0: must be an int of at least 1"),
        ({"warps": 4.0}, "warps=4.0: must be an int of at least 1"),
        ({"ctas_per_sm": 0}, "ctas_per_sm=0"),
        ({"v_head_dim": 128}, "v_head_dim=128: allowed are None and multiples of 8 from 32 to 256"),
        ({"v_head_dim": 60}, "v_head_dim=60: allowed are None and multiples of 8"),
        ({"head_dim": 128.0}, "head_dim=128.0: allowed are multiples of 8 from 32 to 256"),
        ({"page_size": 2.5}, "page_size=2.5: must be an int of at least 1, or None"),
        ({"page_size": True}, "page_size=True: must be an int of at least 1, or None"),
        ({"prefill": Tile(128.0, 32, 4)}, "prefill.rows=128.0: must be an int of at least 1"),
        ({"causal": 1}, "causal=1: must be a bool"),
        ({"page_size": 0}, "page_size=0: must be an int of at least 1, or None"),
        ({"prefill": Tile(96, 32, 4)}, "prefill.rows=96: 4 warp(s) share the tile, so it must"),
        ({"prefill": Tile(256, 32, 4)}, "must have 64 or 128 rows"),
        ({"prefill": Tile(128, 24, 4)}, "prefill.kv_tile=24: must be a multiple of 16"),
        ({"prefill": Tile(128, 0, 4)}, "prefill.kv_tile=0: must be an int of at least 1"),
        ({"prefill": Tile(128, 256, 4)}, "prefill.kv_tile=256: at most 32 keys for each of 4"),
        ({"prefill": Tile(128, 32, 1)}, "prefill.kv_slots=1: at least 2"),
        ({"decode": Tile(32, 16, 3)}, "decode.rows=32: a decode tile has 16 rows"),
        ({"decode": Tile(64, 16, 3)}, "decode.rows=64: 1 warp(s) share the tile"),
        ({"decode": Tile(16, 64, 3)}, "decode.kv_tile=64: at most 32 keys for each of 1"),
        ({"decode": Tile(16, 16, 0)}, "decode.kv_slots=0: must be an int of at least 1"),
    ],
)
def test_refusal_names_field_value_and_what_is_allowed(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedConfigError, match=re.escape(message)):
        changed(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"arch": "sm_86", "prefill": Tile(128, 32, 12), "ctas_per_sm": 1},
            f"bytes of shared memory in a CTA; sm_86 allows {99 * KIB}",
        ),
        (
            {"arch": "sm_90a", "prefill": Tile(128, 32, 9), "ctas_per_sm": 3},
            f"bytes of shared memory on an SM; sm_90a has {228 * KIB}",
        ),
        (
            # 26 KiB of tiles, 1 KiB of static variables and 1 KiB of the driver's, six times.
            {
                "arch": "sm_80",
                "head_dim": 64,
                "warps": 2,
                "prefill": Tile(64, 48, 3),
                "decode": Tile(16, 16, 2),
                "ctas_per_sm": 6,
            },
            f"6 CTAs need {168 * KIB} bytes of shared memory on an SM; sm_80 has {164 * KIB}",
        ),
        (
            {
                "form": "prefill",
                "head_dim": 64,
                "warps": 64,
                "prefill": Tile(1024, 64, 2),
                "decode": Tile(16, 16, 2),
                "ctas_per_sm": 1,
            },
            "warps=64: 2048 threads in a CTA; CUDA allows 1024",
        ),
        (
            {
                "form": "prefill",
                "arch": "sm_87",
                "head_dim": 64,
                "prefill": Tile(256, 16, 2),
                "decode": Tile(16, 16, 2),
                "warps": 16,
                "ctas_per_sm": 4,
            },
            "2048 threads on an SM; sm_87 allows 1536",
        ),
        (
            {
                "head_dim": 64,
                "prefill": Tile(16, 16, 2),
                "decode": Tile(16, 16, 2),
                "ctas_per_sm": 17,
                "warps": 1,
                "arch": "sm_87",
            },
            "ctas_per_sm=17: sm_87 allows 16",
        ),
    ],
    ids=[
        "shared memory of a CTA",
        "shared memory of an SM",
        "static shared memory",
        "threads of a CTA",
        "threads of an SM",
        "CTA slots",
    ],
)
def test_refusal_names_the_limit(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=re.escape(message)):
        changed(**fields)


@pytest.mark.parametrize("arch", DEFAULT_ARCHS)
def test_a_serial_kernel_of_a_valid_fused_one_is_valid(arch: str) -> None:
    for head_dim in HEAD_DIMS:
        fused = variant("pod", arch, "float16", head_dim)
        for form in ("prefill", "decode"):
            assert dataclasses.replace(fused, form=form).smem_bytes <= fused.smem_bytes
