"""What makes the prefill loop fast and can be seen without a GPU.

ptxas undoes it silently: it moves descriptors through ordinary registers where it loses track of
what is uniform, reads the thread index again where registers are few, and waits for wgmma as early
as it can (`bench/results/h200/NOTES.md`).
"""

from __future__ import annotations

import pytest
from sass_support import between, count, loops

from podrt import jit
from podrt.jit.disassembler import find_nvdisasm
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.host import source_of
from podrt.kernels.hopper.presets import default_hopper_variants, hopper_variant

pytestmark = pytest.mark.usefixtures("compiled_once")

VARIANTS = [
    *default_hopper_variants(forms=("prefill", "pod"), dtypes=("bfloat16",), page_sizes=(16,)),
    *(
        hopper_variant(form, "bfloat16", head_dim, page_size=16)
        for form in ("prefill", "pod")
        for head_dim in (80, 96, 112, 192)
    ),
    *(
        hopper_variant("pod", "bfloat16", 96, decode_rows=rows, page_size=16, head_pairs=True)
        for rows in (8, 16)
    ),
    *default_hopper_variants(
        forms=("prefill", "pod"),
        dtypes=("bfloat16",),
        head_dims=(192,),
        v_head_dim=128,
        decode_rows=(8, 32),
        page_sizes=(16,),
    ),
]
CAPPED = [
    hopper_variant(form, "bfloat16", head_dim, page_size=16, soft_cap=True)
    for form in ("prefill", "pod")
    for head_dim in (64, 128)
]


def prefill_loops(
    sass: str, config: HopperConfig, *, tiles: int, exponentials: int
) -> list[list[str]]:
    """Return the loops over prefill tiles with the products of that many, and exponentials."""
    parts = config.value_dim // config.value_columns  # of V
    products = config.head_dim // 16 + config.kv_tile // 16 * parts
    return [
        loop
        for loop in loops(sass)
        if count(loop, "HGMMA") == tiles * products
        and count(loop, f"HGMMA.64x{config.kv_tile}x16") >= tiles * config.head_dim // 16
        and count(loop, "MUFU.EX2") == exponentials
    ]


@pytest.mark.skipif(find_nvdisasm() is None, reason="needs nvdisasm (nvidia-cuda-nvdisasm)")
@pytest.mark.parametrize("config", [*VARIANTS, *CAPPED], ids=lambda config: config.name)
def test_prefill_loops_are_as_they_were_measured(config: HopperConfig) -> None:
    sass = jit.disassemble(jit.build(source_of(config)).cubin)
    scores = config.kv_tile // 2
    # Tiles without a mask are done relative to the old reference and, seldom, once again, exactly.
    seen = 2 * scores + 2
    # Tiles with a mask are done exactly, with two factors.
    cut = scores + 2
    if config.soft_cap:
        seen, cut = seen + scores, cut + scores
    lagging = prefill_loops(sass, config, tiles=1, exponentials=seen)
    # One loop is around the other: windows cut the last tiles as the causal mask does the first.
    exact = prefill_loops(sass, config, tiles=2, exponentials=seen + cut)
    assert len(lagging) == 1
    assert len(exact) == 1
    for loop in lagging + exact:
        assert count(loop, "R2UR") <= 2, "descriptors come from ordinary registers"
    assert count(lagging[0], "S2R") == 0, "the thread index is read again for every tile"
    if config.soft_cap:  # of four scores, one reciprocal
        assert count(lagging[0], "MUFU.RCP") == scores // 4
    beside_pv = between(lagging[0], "DEPBAR.LE gsb0, 0x1", "DEPBAR.LE gsb0, 0x0")
    assert count(beside_pv, "MUFU.EX2") >= 4, "no exponential runs beside O += P V"
