"""Errors that podrt raises on purpose. Bad arguments are plain ``ValueError``/``TypeError``."""

from __future__ import annotations

import re

#: An error of NVRTC, with its place if it has one.
_ERROR = re.compile(
    r"^(?:(?P<file>\S+)\((?P<line>\d+)\): )?"
    r".*?\b(?:fatal|(?:catastrophic )?error)\s*:\s*(?P<reason>.+)",
    re.MULTILINE,
)
#: Source lines shown before and after that of an error, and most lines of the log.
_CONTEXT, _LOG_LINES = 4, 40


class PodrtError(Exception):
    """Base class of podrt's own errors."""


class UnsupportedConfigError(PodrtError, ValueError):
    """A valid request that podrt cannot serve: names argument, value and what is allowed."""


class DeviceError(PodrtError, RuntimeError):
    """No usable GPU, driver or CuPy for work that needs one."""


class MissingKernelError(PodrtError, RuntimeError):
    """``PODRT_DISABLE_JIT=1`` and the wanted variant is not in the cache."""


class CompileError(PodrtError, RuntimeError):
    """NVRTC refused a rendered kernel. Its text is short; `listing` has the whole.

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
    headers : tuple of (str, str)
        Name and text of each header that the source includes.
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
        log = self.log.strip().splitlines()
        shown = log[:_LOG_LINES]
        if len(log) > len(shown):
            shown.append(f"... and {len(log) - len(shown)} more lines")
        return "\n".join(
            (
                f"NVRTC could not compile {self.name}: {self._reason()}",
                *self._around_the_error(),
                "",
                *shown,
                f"options: {' '.join(self.options)}",
                "all of the source: listing() of this error, or PODRT_JIT_VERBOSE=1",
            )
        )

    def listing(self) -> str:
        """Return everything: options, log, and all lines of the source with their numbers."""
        lines = self.source.splitlines()
        numbered = (_numbered(number, line) for number, line in enumerate(lines, start=1))
        return "\n".join(
            (
                f"NVRTC could not compile {self.name}",
                f"options: {' '.join(self.options)}",
                self.log.strip(),
                *numbered,
            )
        )

    def _reason(self) -> str:
        """Return the first error of the log."""
        match = _ERROR.search(self.log)
        return match["reason"] if match else self.log.strip().partition("\n")[0]

    def _around_the_error(self) -> list[str]:
        """Return the lines about the first error that names one, with their numbers."""
        texts = {f"{self.name}.cu": self.source, **dict(self.headers)}
        for match in _ERROR.finditer(self.log):
            if match["file"] in texts:
                at, lines = int(match["line"]), texts[match["file"]].splitlines()
                around = range(max(at - _CONTEXT, 1), min(at + _CONTEXT, len(lines)) + 1)
                return [f"{match['file']}:"] + [
                    _numbered(number, lines[number - 1], mark=">" if number == at else " ")
                    for number in around
                ]
        return []


def _numbered(number: int, line: str, mark: str = "") -> str:
    return f"{mark}{number:5d} | {line}"
