"""One table of GPU architectures and their limits (from the CUDA C++ Programming Guide)."""

from __future__ import annotations

from dataclasses import dataclass

from podrt.errors import UnsupportedConfigError

KIB = 1024
#: Shared memory that the driver keeps for itself in every CTA (compute capability 8.0 and newer).
RESERVED_SMEM_BYTES = 1 * KIB


@dataclass(frozen=True)
class Arch:
    """What one architecture offers to a kernel.

    Attributes
    ----------
    name : str
        NVRTC target, for example ``"sm_90a"``.
    compute_capability : tuple of int
        ``(major, minor)``.
    smem_per_sm_bytes, smem_per_cta_bytes : int
        Shared memory of one SM, and the most that one CTA may opt in to.
    max_threads_per_sm, max_ctas_per_sm : int
        Residency limits of one SM.
    registers_per_sm : int
        32-bit registers of one SM.
    """

    name: str
    compute_capability: tuple[int, int]
    smem_per_sm_bytes: int
    smem_per_cta_bytes: int
    max_threads_per_sm: int
    max_ctas_per_sm: int
    registers_per_sm: int = 65536


ARCHS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("sm_80", (8, 0), 164 * KIB, 163 * KIB, 2048, 32),
        Arch("sm_86", (8, 6), 100 * KIB, 99 * KIB, 1536, 16),
        Arch("sm_87", (8, 7), 164 * KIB, 163 * KIB, 1536, 16),
        Arch("sm_89", (8, 9), 100 * KIB, 99 * KIB, 1536, 24),
        Arch("sm_90a", (9, 0), 228 * KIB, 227 * KIB, 2048, 32),
        Arch("sm_100", (10, 0), 228 * KIB, 227 * KIB, 2048, 32),
        Arch("sm_103", (10, 3), 228 * KIB, 227 * KIB, 2048, 32),
        Arch("sm_120", (12, 0), 100 * KIB, 99 * KIB, 1536, 24),
        Arch("sm_121", (12, 1), 100 * KIB, 99 * KIB, 1536, 24),
    )
}

#: The architectures that the default set of variants is compiled for in CI.
DEFAULT_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")


def get_arch(name: str) -> Arch:
    """Return the limits of the architecture called `name`, for example ``"sm_90a"``."""
    try:
        return ARCHS[name]
    except KeyError:
        raise UnsupportedConfigError(f"arch={name!r}: known are {', '.join(ARCHS)}") from None


def arch_of(compute_capability: tuple[int, int]) -> Arch:
    """Return the exact architecture of a device of that compute capability."""
    for arch in ARCHS.values():
        if arch.compute_capability == compute_capability:
            return arch
    major, minor = compute_capability
    raise UnsupportedConfigError(
        f"device of compute capability {major}.{minor}: known are "
        + ", ".join("{}.{}".format(*arch.compute_capability) for arch in ARCHS.values())
    )
