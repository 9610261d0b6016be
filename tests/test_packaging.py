"""The wheel holds all that podrt needs at run time."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
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
    suites = ROOT / "bench" / "suites"
    expected |= {f"podrt/bench/suites/{path.relative_to(suites)}" for path in _files(suites)}
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


def test_both_extras_want_a_cuda_core_that_heeds_byte_offsets():
    """1.0 and 1.1 ignore them: q[2:6] gave the rows of q[0:4]."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in ("cuda12", "cuda13"):
        assert "cuda-core>=1.2" in project["optional-dependencies"][extra]


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_compiles_from_a_folder_that_the_locale_cannot_spell(wheel, tmp_path, locale):
    folder = tmp_path / "日本 ü"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    script = (
        "from podrt.explore.select import select; from podrt.kernels.families import source_of; "
        "from podrt import jit; import podrt; "
        "config = select(archs=['sm_80'], forms=['decode'], head_dims=[64])[0]; "
        "print(ascii(podrt.__file__), len(jit.build(source_of(config)).cubin))"
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.fsencode(folder),
        "PODRT_CACHE_DIR": os.fsencode(folder / "cache"),
        "LC_ALL": locale,
        # Python would help itself out otherwise.
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\\udc" in done.stdout
    assert len(list((folder / "cache").iterdir())) == 1


def _files(folder):
    return [
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
