"""What the compiler gives: a cubin and all that is known of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from podrt.jit.key import Recipe
from podrt.jit.source import KernelSource

Origin = Literal["memory", "disk", "compiled"]

_REGISTERS = re.compile(r"Used (\d+) registers")
_STATIC_SMEM = re.compile(r"(\d+) bytes smem")
_STACK = re.compile(r"(\d+) bytes stack frame")
_SPILL_STORES = re.compile(r"(\d+) bytes spill stores")
_SPILL_LOADS = re.compile(r"(\d+) bytes spill loads")
# ptxas marks its performance advisories with codes C7000 to C7999.
_WARNING = re.compile(r"\bC7\d{3}\b|\bwarning\s*[#:]", re.IGNORECASE)


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of a kernel.

    Attributes
    ----------
    registers : int
        32-bit registers of one thread.
    static_smem_bytes : int
        Shared memory of one CTA that is known at compile time.
    stack_bytes : int
        Local memory of one thread.
    spill_store_bytes, spill_load_bytes : int
        Bytes that one thread moves to and from local memory for want of registers, counting each
        instruction once.
    warnings : tuple of str
        Lines of the log that warn of lost speed or of suspicious code.
    """

    registers: int
    static_smem_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_log(cls, log: str) -> Resources:
        """Read a log made with ``--ptxas-options=-v``.

        Functions that were not inlined count too: their spills are added up.
        """
        return cls(
            registers=max(_numbers(_REGISTERS, log), default=0),
            static_smem_bytes=max(_numbers(_STATIC_SMEM, log), default=0),
            stack_bytes=max(_numbers(_STACK, log), default=0),
            spill_store_bytes=sum(_numbers(_SPILL_STORES, log)),
            spill_load_bytes=sum(_numbers(_SPILL_LOADS, log)),
            warnings=tuple(line.strip() for line in log.splitlines() if _WARNING.search(line)),
        )


def _numbers(pattern: re.Pattern[str], log: str) -> list[int]:
    return [int(number) for number in pattern.findall(log)]


@dataclass(frozen=True)
class Build:
    """A compiled kernel.

    Attributes
    ----------
    recipe : Recipe
        What was compiled, and how.
    cubin : bytes
        Machine code for the recipe's architecture.
    log : str
        NVRTC's and ptxas's log.
    resources : Resources
        Registers, shared memory and spills, read from `log`.
    compile_time_s : float
        Seconds that NVRTC took, when it did.
    origin : {"memory", "disk", "compiled"}
        Where this `Build` came from.
    """

    recipe: Recipe
    cubin: bytes = field(repr=False)
    log: str = field(repr=False)
    resources: Resources
    compile_time_s: float
    origin: Origin

    @property
    def source(self) -> KernelSource:
        """The kernel's source."""
        return self.recipe.source

    @property
    def key(self) -> str:
        """Its cache key, 64 hexadecimal digits."""
        return self.recipe.key
