"""Kinds of instructions."""

from __future__ import annotations

import pytest
from cli_support import HOPPER, run, run_json

from podrt.explore.mix import KINDS, instruction_mix
from podrt.jit import find_nvdisasm

SASS = """
	.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 MUFU.EX2 R3, R3 ;
        /*0020*/                   MUFU.RCP R3, R3 ;
        /*0030*/               @P1 HGMMA.64x112x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0040*/              @UP0 UTMALDG.5D [UR8], [UR4], desc[UR6] ;
        /*0050*/                   LDGSTS.E.BYPASS.LTC128B.128 [R1], [R2.64] ;
        /*0060*/                   LDG.E R1, [R2.64] ;
        /*0070*/                   FFMA R1, R2, R3, R4 ;
        /*0080*/              @!P0 BRA `(.L_x_1) ;
"""


def test_instructions_are_counted_by_kind() -> None:
    counts = instruction_mix(SASS)
    assert counts["all"] == 9 == sum(counts.values()) - counts["all"]
    ones = ("wgmma", "TMA", "cp.async", "ex2", "float", "global", "branches")
    assert [counts[kind] for kind in ones] == [1] * len(ones)
    assert counts["other"] == 2  # LDC and the reciprocal
    assert set(counts) == {"all", *KINDS, "other"}


@pytest.mark.skipif(find_nvdisasm() is None, reason="no nvdisasm")
def test_of_a_hopper_kernel() -> None:
    (row,) = run_json("explore", "stats", *HOPPER, "--mix")
    mix = row["mix"]
    assert mix["wgmma"] > 0 < mix["TMA"]
    assert mix["ex2"] > 0 < mix["barriers"]
    assert mix["mma"] == mix["cp.async"] == 0
    assert "wgmma" in run("explore", "stats", *HOPPER, "--mix")
