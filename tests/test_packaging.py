"""The wheel holds all that podrt needs at run time."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from podrt._version import __version__

pytest.importorskip("hatchling", reason="needs hatchling to build a wheel")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_is_for_any_machine_and_this_version(wheel):
    assert wheel.name == f"podrt-{__version__}-py3-none-any.whl"


def test_wheel_holds_every_module_template_and_data_file(names):
    expected = {f"podrt/{path.relative_to(ROOT / 'podrt')}" for path in _files(ROOT / "podrt")}
    expected |= {
        f"podrt/templates/{path.relative_to(ROOT / 'templates')}"
        for path in _files(ROOT / "templates")
    }
    expected |= {f"podrt/bench/suites/{path.name}" for path in _files(ROOT / "bench" / "suites")}
    assert expected <= names
    assert {"podrt/py.typed", "podrt/data/sample_trace.csv"} <= names
    assert "podrt/templates/portable/kernel.cu.jinja" in names


def test_wheel_holds_nothing_else(names):
    assert {name.partition("/")[0] for name in names} == {"podrt", f"podrt-{__version__}.dist-info"}


def test_an_installed_wheel_finds_its_templates_and_suites(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        "from podrt.bench.suites import suites_dir; from podrt.jit import templates_dir; "
        "print(templates_dir()); print(suites_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    package = tmp_path / "podrt"
    assert done.stdout.split() == [str(package / "templates"), str(package / "bench" / "suites")]


def _files(folder):
    return [
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
