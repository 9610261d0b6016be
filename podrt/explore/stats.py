"""What the compiler made of a variant, as one flat row."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from podrt.gpu.occupancy import occupancy
from podrt.jit import Build
from podrt.kernels.families import Variant


@dataclass(frozen=True)
class VariantStats:
    """Resources of one compiled variant.

    Attributes
    ----------
    name : str
        The variant.
    registers : int
        Of one thread when the kernel starts.
    role_registers : dict of str to int
        Of one thread of each role, after the roles have shared them out; empty where all threads
        keep `registers`.
    smem_bytes : int
        Shared memory of one CTA, static and dynamic.
    smem_buffers : dict of str to int
        Bytes of each part of the dynamic shared memory; parts may overlap (`SmemBuffer`).
    spill_bytes : int
        Bytes stored to and loaded from spilled registers.
    ctas_per_sm, wanted_ctas_per_sm : int
        CTAs that fit on one SM, and that the variant was made for.
    limited_by : tuple of str
        What stops one more CTA.
    occupancy : float
        Share of the SM's thread slots in use, 0 to 1.
    cubin_bytes : int
        Size of the binary.
    compile_time_s : float
        Time NVRTC took when it was compiled, be that now or earlier.
    cache : {"memory", "disk", "compiled"}
        Where the build came from; "compiled" = it was not cached.
    key : str
        Cache key.
    """

    name: str
    registers: int
    role_registers: dict[str, int]
    smem_bytes: int
    smem_buffers: dict[str, int]
    spill_bytes: int
    ctas_per_sm: int
    wanted_ctas_per_sm: int
    limited_by: tuple[str, ...]
    occupancy: float
    cubin_bytes: int
    compile_time_s: float
    cache: str
    key: str

    def to_dict(self) -> dict[str, object]:
        """Fields as plain values, for JSON."""
        return asdict(self)


def stats_of(config: Variant, build: Build) -> VariantStats:
    """Return the resources of a build, and how many of its CTAs fit on an SM of its arch."""
    resources = build.resources
    smem_bytes = resources.static_smem_bytes + config.smem_bytes
    resident = occupancy(
        config.limits,
        threads=config.threads,
        registers=resources.registers,
        smem_bytes=smem_bytes,
    )
    return VariantStats(
        name=config.name,
        registers=resources.registers,
        role_registers=config.role_registers,
        smem_bytes=smem_bytes,
        smem_buffers={each.name: each.size_bytes for each in config.smem_buffers},
        spill_bytes=resources.spill_store_bytes + resources.spill_load_bytes,
        ctas_per_sm=resident.ctas_per_sm,
        wanted_ctas_per_sm=config.ctas_per_sm,
        limited_by=resident.limited_by,
        occupancy=round(resident.fraction, 4),
        cubin_bytes=len(build.cubin),
        compile_time_s=round(build.compile_time_s, 3),
        cache=build.origin,
        key=build.key,
    )
