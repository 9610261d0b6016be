"""Memory of this process over time, on the host and on the GPU, and whether it stays flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from podrt.gpu.device import load_cupy

#: What may come on top between the second quarter of a run and its last, by kind.
ALLOWED_BYTES = {
    "rss_bytes": 48 << 20,  # the interpreter's own heap breathes
    "gpu_used_bytes": 32 << 20,
    "pool_used_bytes": 8 << 20,
    "pool_total_bytes": 32 << 20,
}

#: Samples that it takes to tell whether memory is flat.
MIN_SAMPLES = 8


@dataclass(frozen=True)
class MemorySample:
    """Memory after some steps.

    Attributes
    ----------
    step : int
    rss_bytes : int
        Resident memory of the process.
    gpu_used_bytes : int
        Of the device, by everybody.
    pool_used_bytes, pool_total_bytes : int
        CuPy's pool: what is handed out, and what it holds.
    """

    step: int
    rss_bytes: int
    gpu_used_bytes: int
    pool_used_bytes: int
    pool_total_bytes: int


def sample_memory(step: int) -> MemorySample:
    """Read all of it; the GPU should have nothing to do."""
    cupy = load_cupy()
    free_bytes, total_bytes = cupy.cuda.runtime.memGetInfo()
    pool = cupy.get_default_memory_pool()
    return MemorySample(
        step, resident_bytes(), total_bytes - free_bytes, pool.used_bytes(), pool.total_bytes()
    )


def resident_bytes() -> int:
    """Return the resident memory of this process.

    Counted now, by the page tables: the cheaper numbers of ``statm`` lag behind, by many huge
    pages.
    """
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup has no line Rss:")


def growth_bytes(samples: Sequence[MemorySample]) -> dict[str, int]:
    """Return by how much the highest of the last quarter exceeds the highest of the second.

    The first quarter is left out: buffers grow to what the longest batch needs. Empty if there are
    fewer than `MIN_SAMPLES`.
    """
    if len(samples) < MIN_SAMPLES:
        return {}
    quarter = len(samples) // 4
    before, after = samples[quarter : 2 * quarter], samples[-quarter:]
    names = [field.name for field in fields(MemorySample) if field.name != "step"]
    return {
        name: max(getattr(sample, name) for sample in after)
        - max(getattr(sample, name) for sample in before)
        for name in names
    }


def not_flat(growth: dict[str, int]) -> list[str]:
    """Return a line per kind of memory that grew by more than `ALLOWED_BYTES`."""
    if not growth:
        return [f"memory was sampled fewer than {MIN_SAMPLES} times: take more steps"]
    return [
        f"{name} grew by {growth[name] / 2**20:.1f} MiB, allowed are {allowed / 2**20:.0f}"
        for name, allowed in ALLOWED_BYTES.items()
        if growth[name] > allowed
    ]
