"""How long each phase of a compilation takes, as NVRTC itself says."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

from podrt.errors import PodrtError
from podrt.jit.key import recipe_of
from podrt.jit.nvrtc import run_nvrtc
from podrt.jit.source import KernelSource

_UNITS_S = {"ms": 1e-3, "us": 1e-6, "s": 1.0}


def compile_phases(source: KernelSource) -> dict[str, float]:
    """Compile `source` for nothing but the time, and return the seconds of each phase by its name.

    Raises
    ------
    PodrtError
        If NVRTC refuses the text or an option; older releases do not know ``--time``.
    DeviceError
        If NVRTC is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "time.csv")
        options = (*recipe_of(source).options, f"--time={path}")
        output = run_nvrtc(source.text, f"{source.name}.cu", options, source.headers)
        if not output.succeeded or not path.exists():
            raise PodrtError(f"NVRTC gave no times of {source.name}: {output.log}")
        return read_phases(path.read_text())


def read_phases(text: str) -> dict[str, float]:
    """Read what ``--time`` writes: file, phase, number and unit, below a heading."""
    _, *rows = csv.reader(text.splitlines(), skipinitialspace=True)
    phases: dict[str, float] = {}
    for _, phase, number, unit in rows:
        phases[phase] = phases.get(phase, 0.0) + float(number) * _UNITS_S[unit]
    return phases
