"""SASS of a cubin, through NVIDIA's ``nvdisasm``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from podrt.errors import PodrtError


def find_nvdisasm() -> str | None:
    """Return the path of ``nvdisasm`` (wheels, conda, CUDA toolkit, then PATH), or None."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        return shutil.which("nvdisasm")
    found: str | None = find_nvidia_binary_utility("nvdisasm")
    return found or shutil.which("nvdisasm")


def disassemble(cubin: bytes, *, encodings: bool = False, lines: bool = False) -> str:
    """Return the SASS of `cubin`, code sections only.

    Parameters
    ----------
    cubin : bytes
    encodings : bool
        With each instruction's 128 bits, the upper half on a line of its own.
    lines : bool
        With the source lines that each instruction comes from, functions that were inlined too;
        nothing where the cubin was compiled without ``-lineinfo``.

    Raises
    ------
    PodrtError
        If ``nvdisasm`` is not installed or refuses `cubin`.
    """
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        raise PodrtError(
            "nvdisasm was not found. Install it with: pip install nvidia-cuda-nvdisasm"
        )
    more = ["--print-instruction-encoding"] * encodings + ["--print-line-info-inline"] * lines
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [nvdisasm, "--print-code", *more, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PodrtError(f"nvdisasm could not read the cubin: {done.stderr.strip()}")
    return done.stdout
