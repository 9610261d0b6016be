"""How many CTAs of a kernel fit on one SM, and what stops one more.

Allocation granularities are those of the CUDA C++ Programming Guide for compute capability 8.0 and
newer: registers by the warp in blocks of 256 on four sub-partitions, shared memory in blocks of 128
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from podrt.gpu.arch import RESERVED_SMEM_BYTES, Arch

_WARP = 32
_SUB_PARTITIONS = 4
_REGISTER_BLOCK = 256
_SMEM_BLOCK = 128


@dataclass(frozen=True)
class Occupancy:
    """Residency of one kernel on one SM.

    Attributes
    ----------
    limits : mapping of str to int
        CTAs that each resource alone would allow: ``"registers"``, ``"shared memory"``,
        ``"threads"``, ``"CTA slots"``.
    threads : int
        Threads of one CTA.
    max_threads_per_sm : int
        Threads that the SM can hold.
    """

    limits: Mapping[str, int]
    threads: int
    max_threads_per_sm: int

    @property
    def ctas_per_sm(self) -> int:
        """CTAs that fit on one SM together."""
        return min(self.limits.values())

    @property
    def limited_by(self) -> tuple[str, ...]:
        """The resources that stop one more CTA; several when they run out together."""
        return tuple(name for name, ctas in self.limits.items() if ctas == self.ctas_per_sm)

    @property
    def fraction(self) -> float:
        """Share of the SM's thread slots that is in use, from 0 to 1."""
        return self.ctas_per_sm * self.threads / self.max_threads_per_sm


def occupancy(arch: Arch, *, threads: int, registers: int, smem_bytes: int) -> Occupancy:
    """Return how many CTAs of a kernel fit on one SM of `arch`.

    Parameters
    ----------
    arch : Arch
        Limits of the architecture.
    threads : int
        Threads of one CTA.
    registers : int
        Registers of one thread, as the compiler reports them.
    smem_bytes : int
        Shared memory of one CTA, static and dynamic together.

    Raises
    ------
    ValueError
        `threads` or `registers` is below 1, or `smem_bytes` is negative.
    """
    for name, value, least in (
        ("threads", threads, 1),
        ("registers", registers, 1),
        ("smem_bytes", smem_bytes, 0),
    ):
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    limits = {
        "registers": _by_registers(arch, threads, registers),
        "shared memory": _by_smem(arch, smem_bytes),
        "threads": arch.max_threads_per_sm // _round_up(threads, _WARP),
        "CTA slots": arch.max_ctas_per_sm,
    }
    return Occupancy(limits, threads, arch.max_threads_per_sm)


def _by_registers(arch: Arch, threads: int, registers: int) -> int:
    registers_per_warp = _round_up(registers * _WARP, _REGISTER_BLOCK)
    warps_per_cta = -(-threads // _WARP)
    # A CTA's warps are dealt out evenly, so the fullest sub-partition decides whether it fits.
    if registers_per_warp * _round_up(warps_per_cta, _SUB_PARTITIONS) > arch.registers_per_sm:
        return 0
    warps_per_partition = arch.registers_per_sm // _SUB_PARTITIONS // registers_per_warp
    return warps_per_partition * _SUB_PARTITIONS // warps_per_cta


def _by_smem(arch: Arch, smem_bytes: int) -> int:
    if smem_bytes > arch.smem_per_cta_bytes:
        return 0
    return arch.smem_per_sm_bytes // _round_up(smem_bytes + RESERVED_SMEM_BYTES, _SMEM_BLOCK)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
