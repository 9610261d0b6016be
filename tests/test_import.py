"""``import podrt`` does no work."""

from __future__ import annotations

import json
import os
import subprocess
import sys

HEAVY = ("cupy", "cuda", "jinja2", "torch", "vllm", "jax", "typer", "rich", "ml_dtypes")

_SCRIPT = f"""
import json, sys
import podrt
loaded = {{name.partition(".")[0] for name in sys.modules}}
libraries = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print(json.dumps([sorted(loaded & set({HEAVY!r})), "libcuda" in libraries]))
"""


def test_import_loads_nothing_heavy_and_makes_no_folder(tmp_path):
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home" / "cache"),
        "PODRT_CACHE_DIR": str(tmp_path / "podrt-cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[], False]
    assert list(tmp_path.iterdir()) == []


def test_a_bad_knob_does_not_stop_the_import():
    environment = {**os.environ, "PODRT_DISABLE_JIT": "perhaps"}
    subprocess.run([sys.executable, "-c", "import podrt"], env=environment, check=True)
