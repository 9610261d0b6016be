"""CTAs per SM, against values worked out by hand from the programming guide's tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podrt.gpu.arch import ARCHS, KIB, get_arch
from podrt.gpu.occupancy import occupancy

HOPPER = get_arch("sm_90a")


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "smem_bytes", "ctas", "limited_by"),
    [
        # 128 registers x 128 threads = 16384 of 65536.
        ("sm_90a", 128, 128, 16 * KIB, 4, ("registers",)),
        # 168 registers: 5376 a warp, 3 warps on a sub-partition of 16384, 12 on the SM.
        ("sm_90a", 128, 168, 16 * KIB, 3, ("registers",)),
        # 129 registers are handed out as 136.
        ("sm_80", 256, 129, 0, 1, ("registers",)),
        # 112 KiB + 1 KiB for the driver fit twice into 228 KiB; 114 KiB do not.
        ("sm_90a", 128, 64, 112 * KIB, 2, ("shared memory",)),
        ("sm_90a", 128, 64, 114 * KIB, 1, ("shared memory",)),
        ("sm_86", 128, 64, 48 * KIB, 2, ("shared memory",)),
        ("sm_80", 1024, 32, 0, 2, ("registers", "threads")),
        ("sm_86", 1024, 32, 0, 1, ("threads",)),
        ("sm_86", 32, 16, 0, 16, ("CTA slots",)),
        # 8192 registers a warp, two on each of the four sub-partitions.
        ("sm_90a", 32, 255, 0, 8, ("registers",)),
        ("sm_86", 128, 64, 100 * KIB, 0, ("shared memory",)),
    ],
)
def test_ctas_and_what_limits_them(arch, threads, registers, smem_bytes, ctas, limited_by):
    result = occupancy(get_arch(arch), threads=threads, registers=registers, smem_bytes=smem_bytes)
    assert result.ctas_per_sm == ctas
    assert result.limited_by == limited_by


def test_fraction_counts_thread_slots():
    assert occupancy(HOPPER, threads=128, registers=128, smem_bytes=0).fraction == 0.25


@given(
    arch=st.sampled_from(sorted(ARCHS)),
    warps=st.integers(1, 32),
    registers=st.integers(1, 255),
    smem_bytes=st.integers(0, 227 * KIB),
)
def test_what_fits_stays_within_the_sm(arch, warps, registers, smem_bytes):
    limits = get_arch(arch)
    threads = 32 * warps
    ctas = occupancy(
        limits, threads=threads, registers=registers, smem_bytes=smem_bytes
    ).ctas_per_sm
    assert ctas * threads <= limits.max_threads_per_sm
    assert ctas * threads * registers <= limits.registers_per_sm
    assert ctas * smem_bytes <= limits.smem_per_sm_bytes
    assert ctas <= limits.max_ctas_per_sm


@pytest.mark.parametrize(
    ("argument", "value"), [("threads", 0), ("registers", 0), ("smem_bytes", -1)]
)
def test_impossible_numbers_are_refused_by_name(argument, value):
    numbers = {"threads": 128, "registers": 64, "smem_bytes": 0, argument: value}
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        occupancy(HOPPER, **numbers)
