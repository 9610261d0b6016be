"""A home that cannot be written, or none at all, does not keep CuPy from being imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_LOAD = """
import os, warnings
from podrt.gpu.device import load_cupy
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        load_cupy()
mine = [warning for warning in caught if "CUPY_CACHE_DIR" in str(warning.message)]
print(os.environ.get("CUPY_CACHE_DIR"), len(mine))
"""


def load_with(home: str, folder: Path, **variables: str) -> tuple[str, int]:
    """Load CuPy in a new process; return CUPY_CACHE_DIR and the number of warnings."""
    pytest.importorskip("cupy")
    environment = {name: value for name, value in os.environ.items() if name != "CUPY_CACHE_DIR"}
    environment |= {"HOME": home, "TMPDIR": str(folder), **variables}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder_named, warnings = done.stdout.split()
    return folder_named, int(warnings)


@pytest.mark.parametrize("home", ["a file", "no/absolute/path"])
def test_home_that_holds_no_folder_leaves_a_temporary_one_and_one_warning(
    tmp_path: Path, home: str
) -> None:
    blocked = tmp_path / "file"  # stops even the superuser
    blocked.write_text("")
    named, warnings = load_with(str(blocked) if home == "a file" else home, tmp_path)
    assert Path(named).parent == tmp_path
    assert warnings == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # it is gone with the process


def test_home_that_can_be_written_is_left_to_cupy(tmp_path: Path) -> None:
    assert load_with(str(tmp_path), tmp_path) == ("None", 0)
    assert (tmp_path / ".cupy" / "kernel_cache").is_dir()


def test_folder_that_the_user_names_is_taken(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert load_with("/proc/nowhere", tmp_path, CUPY_CACHE_DIR=str(mine)) == (str(mine), 0)
    assert mine.is_dir()
