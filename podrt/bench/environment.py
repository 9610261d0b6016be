"""Where a result comes from: GPU, driver, versions, commit, ceilings."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from podrt._version import __version__
from podrt.bench.ceilings import measure_ceilings
from podrt.bench.clocks import driver_version
from podrt.bench.peers import peer_versions
from podrt.gpu.device import DeviceInfo, load_cupy
from podrt.jit import nvrtc_version
from podrt.policy.calibration import record_of

#: What must agree between two runs for their rows to stand in one file.
IDENTITY = ("gpu", "sm_count", "driver", "nvrtc", "cupy", "podrt", "git_commit")

_PRODUCT_LINES = {"nvidia", "geforce", "tesla", "quadro", "generation"}
_MEMORY_OR_BOARD = re.compile(r"\d+gb|hbm\d\w*|sxm\d*")


def describe(device: DeviceInfo, peers: list[str]) -> dict[str, Any]:
    """Return the environment of a run, ceilings not yet measured."""
    return {
        "gpu": device.name,
        "sm_count": device.num_sms,
        "driver": driver_version(),
        "nvrtc": "{}.{}".format(*nvrtc_version()),
        "cupy": load_cupy().__version__,
        "podrt": __version__,
        "git_commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "peers": peer_versions(peers),
        "predictions_from": str(record_of(device)),
        "ceilings": None,
    }


def with_ceilings(environment: dict[str, Any]) -> dict[str, Any]:
    """Measure the ceilings on CuPy's current stream."""
    return {**environment, "ceilings": measure_ceilings()}


def cpu_model() -> str:
    """Return the CPU's name, such as ``"Intel(R) Xeon(R) Platinum 8480C"``; its type if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def gpu_slug(name: str) -> str:
    """Return a folder name for a GPU: ``"NVIDIA H100 80GB HBM3"`` becomes ``"h100"``."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    kept = [w for w in words if w not in _PRODUCT_LINES and not _MEMORY_OR_BOARD.fullmatch(w)]
    return "-".join(kept) or "gpu"


def git_commit() -> str | None:
    """Return the commit of the checkout that podrt runs from, ``-dirty`` if it was changed.

    None where podrt is installed rather than checked out, or there is no git.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run([*command, "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
