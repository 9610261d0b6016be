"""A page number that is none may give wrong numbers, but neither a hang nor a fault."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_support import skip_without_hopper

SCRIPT = Path(__file__).with_name("bad_pages.py")
LIMIT_S = 120


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("family", ["portable", "hopper"])
def test_page_numbers_that_are_none(family, page_size):
    if family == "hopper":
        skip_without_hopper()
    command = [sys.executable, str(SCRIPT), family, str(page_size)]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ended") == 2 * 4 * 4
