"""What makes the prefill loop fast and can be seen without a GPU.

ptxas undoes both silently: it moves descriptors through ordinary registers where it loses track of
what is uniform, and waits for wgmma as early as it can (`design/hopper-kernel.md`).
"""

from __future__ import annotations

import pytest
from sass_support import between, count, loops

from podrt import jit
from podrt.jit.disassembler import find_nvdisasm
from podrt.kernels.hopper import source_of
from podrt.kernels.hopper_config import HopperConfig
from podrt.kernels.hopper_variants import default_hopper_variants

VARIANTS = default_hopper_variants(forms=("prefill", "pod"), dtypes=("bfloat16",), page_sizes=(16,))


def prefill_loops(config: HopperConfig) -> list[list[str]]:
    """Return the loops over tiles without a mask: those that have both exponentials."""
    sass = jit.disassemble(jit.compile_source(source_of(config)).cubin)
    products = config.head_dim // 16 + config.kv_tile // 16
    return [
        loop
        for loop in loops(sass)
        if count(loop, "HGMMA") == products
        and count(loop, f"HGMMA.64x{config.kv_tile}x16") >= config.head_dim // 16
        # Once relative to the old reference and, seldom, once again, then with two factors.
        and count(loop, "MUFU.EX2") == config.kv_tile + 2
    ]


@pytest.mark.skipif(find_nvdisasm() is None, reason="needs nvdisasm (nvidia-cuda-nvdisasm)")
@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: config.name)
def test_prefill_loop_is_as_it_was_measured(config: HopperConfig) -> None:
    found = prefill_loops(config)
    assert len(found) == (2 if config.has_decode else 1)  # SMs that decode first have their own
    for loop in found:
        assert count(loop, "R2UR") <= 2, "descriptors come from ordinary registers"
        beside_pv = between(loop, "DEPBAR.LE gsb0, 0x1", "DEPBAR.LE gsb0, 0x0")
        assert count(beside_pv, "MUFU.EX2") >= 4, "no exponential runs beside O += P V"
