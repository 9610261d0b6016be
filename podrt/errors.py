"""Errors that podrt raises on purpose. Bad arguments are plain ``ValueError``/``TypeError``."""

from __future__ import annotations


class PodrtError(Exception):
    """Base class of podrt's own errors."""


class UnsupportedConfigError(PodrtError, ValueError):
    """A valid request that podrt cannot serve: names argument, value and what is allowed."""


class DeviceError(PodrtError, RuntimeError):
    """No usable GPU, driver or CuPy for work that needs one."""


class MissingKernelError(PodrtError, RuntimeError):
    """``PODRT_DISABLE_JIT=1`` and the wanted variant is not in the cache."""


class CompileError(PodrtError, RuntimeError):
    """NVRTC refused a rendered kernel.

    Parameters
    ----------
    name : str
        Readable name of the variant.
    source : str
        The rendered CUDA C++ text.
    options : tuple of str
        The options given to NVRTC.
    log : str
        NVRTC's log.
    """

    def __init__(
        self,
        name: str,
        source: str,
        options: tuple[str, ...],
        log: str,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.name, self.source, self.options, self.log = name, source, options, log
        self.headers = headers
        super().__init__(name, source, options, log, headers)

    def __str__(self) -> str:
        numbered = "\n".join(
            f"{number:5d} | {line}" for number, line in enumerate(self.source.splitlines(), start=1)
        )
        return (
            f"NVRTC could not compile {self.name}\n"
            f"options: {' '.join(self.options)}\n{numbered}\n{self.log.strip()}"
        )
