"""``podrt doctor``: what is missing is named, with the step that mends it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from cli_support import run, run_json

from podrt import knobs
from podrt.cli import _health
from podrt.cli._health import Finding
from podrt.gpu.nominal import H100

nvrtc_module = importlib.import_module("podrt.jit.nvrtc")

pytestmark = pytest.mark.usefixtures("empty_cache")


def test_doctor_names_what_is_missing_and_the_command_that_mends_it(monkeypatch):
    found = [
        Finding("podrt", "ok", "1"),
        Finding("NVRTC", "missing", "not found", "pip install 'podrt[cuda13]'"),
    ]
    monkeypatch.setattr("podrt.cli.doctor.findings", lambda: found)
    text = run("doctor", exit_code=1)
    assert "NVRTC: pip install 'podrt[cuda13]'" in text
    assert "cannot run kernels" in text
    assert run_json("doctor", exit_code=1)["can_run"] is False


def test_doctor_is_content_without_optional_things(monkeypatch):
    found = [Finding("nvdisasm", "optional", "absent", "pip install nvidia-cuda-nvdisasm")]
    monkeypatch.setattr("podrt.cli.doctor.findings", lambda: found)
    assert run_json("doctor")["can_run"] is True


def test_doctor_looks_at_everything_whatever_is_installed(empty_cache):
    names = [finding.name for finding in _health.findings()]
    names = [name for name in names if name not in ("CuPy folder", "record")]  # with a GPU
    assert names == [
        "podrt",
        "driver",
        "CuPy",
        "GPU",
        "cuda.core",
        "NVRTC",
        "nvdisasm",
        "cache",
        "knobs",
    ]
    assert not empty_cache.exists()


@pytest.mark.parametrize(
    ("gpu", "detail", "fix"),
    [
        (H100, "the shipped record of an NVIDIA H100 ", ""),
        (replace(H100, memory_gbs=2000.0), "likest", "podrt tune measures this GPU"),
    ],
)
def test_doctor_says_whose_record_predictions_are_from(monkeypatch, gpu, detail, fix):
    monkeypatch.setattr("podrt.gpu.device.current_device", lambda: gpu)
    (record,) = (each for each in _health.findings() if each.name == "record")
    assert detail in record.detail
    assert record.fix == fix


@pytest.mark.parametrize(
    ("driver", "extra"), [(None, "cuda13"), ((13, 0), "cuda13"), ((12, 8), "cuda12")]
)
def test_doctor_suggests_the_extra_that_the_driver_can_run(monkeypatch, driver, extra):
    monkeypatch.setattr(_health, "driver_cuda_version", lambda: driver)
    monkeypatch.setattr(_health, "_CUPY", {"no-such-distribution": 13})
    cupy = next(finding for finding in _health.findings() if finding.name == "CuPy")
    assert (cupy.state, cupy.fix) == ("missing", f"pip install 'podrt[{extra}]'")


def found(name):
    return next(finding for finding in _health.findings() if finding.name == name)


def test_doctor_sees_a_driver_too_old_for_what_is_installed(monkeypatch):
    monkeypatch.setattr(_health, "driver_cuda_version", lambda: (12, 4))
    monkeypatch.setattr(_health, "_version", {"cupy-cuda13x": "14.2.0", "cuda-core": "1.2"}.get)
    monkeypatch.setattr("podrt.jit.nvrtc_version", lambda: (13, 0))
    monkeypatch.setattr("podrt.jit.nvrtc_release", lambda: "release 13.0, V13.0.88")
    cupy, nvrtc = found("CuPy"), found("NVRTC")
    assert (cupy.state, nvrtc.state) == ("missing", "missing")
    needs = "needs a driver of CUDA 13, and this one supports 12.4"
    assert (cupy.detail, nvrtc.detail) == (f"cupy-cuda13x 14.2.0 {needs}", f"13.0.88 {needs}")
    assert cupy.fix == "pip uninstall cupy-cuda13x, then pip install 'podrt[cuda12]'"
    assert nvrtc.fix == "pip install 'podrt[cuda12]'"
    assert not _health.can_run([cupy])


@pytest.mark.parametrize("driver", [(12, 4), (13, 1), None])
def test_doctor_is_content_with_what_fits_the_driver(monkeypatch, driver):
    monkeypatch.setattr(_health, "driver_cuda_version", lambda: driver)
    monkeypatch.setattr(_health, "_version", {"cupy-cuda12x": "14.2.0", "cuda-core": "1.2"}.get)
    assert found("CuPy") == Finding("CuPy", "ok", "cupy-cuda12x 14.2.0")


def test_doctor_sees_two_cupys_in_one_place(monkeypatch):
    versions = {"cupy-cuda12x": "14.1.0", "cupy-cuda13x": "14.2.0"}
    monkeypatch.setattr(_health, "_version", versions.get)
    assert "cupy-cuda13x 14.2.0, cupy-cuda12x 14.1.0 overwrite" in found("CuPy").detail
    assert found("CuPy").fix.startswith("pip uninstall cupy-cuda13x cupy-cuda12x, then")


def test_doctor_names_the_part_of_nvrtc_that_is_missing(monkeypatch):
    log = "nvrtc: error: failed to open libnvrtc-builtins.so.13.0."
    monkeypatch.setattr(nvrtc_module, "run_nvrtc", lambda *_: nvrtc_module.Output(False, log))
    nvrtc_module.nvrtc_release.cache_clear()
    assert found("NVRTC").state == "missing"
    assert "libnvrtc-builtins.so.13.0" in found("NVRTC").detail


@pytest.mark.parametrize(
    ("version", "state"), [("1.1.1", "missing"), ("0.7.0", "missing"), ("1.2.0", "ok")]
)
def test_doctor_sees_a_cuda_core_that_misplaces_slices(monkeypatch, version, state):
    monkeypatch.setattr(_health, "_version", {"cuda-core": version}.get)
    assert found("cuda.core").state == state
    assert found("cuda.core").fix in ("", "pip install 'cuda-core>=1.2'")


@pytest.mark.parametrize("variable", ["PODRT_JIT_LINEINFO", "PODRT_DISABLE_CACHE"])
def test_doctor_prints_its_table_whatever_the_knobs(monkeypatch, variable):
    monkeypatch.setenv(variable, "perhaps")
    with monkeypatch.context() as patch:  # the fixture's overrides go before variables,
        patch.setattr(knobs, "_overrides", {})  # and are to be there again when it ends
        text = run("doctor", exit_code=1)
    assert f"{variable}='perhaps'" in text
    assert "knobs: correct or unset the variable" in text


def test_doctor_prints_its_table_whatever_the_home(tmp_path):
    pytest.importorskip("cupy")
    blocked = tmp_path / "file"
    blocked.write_text("")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CUPY_")},
        "HOME": str(blocked),
        "LC_ALL": "C",
        "TMPDIR": str(tmp_path),
    }
    environment.pop("PODRT_CACHE_DIR", None)
    environment.pop("XDG_CACHE_HOME", None)
    done = subprocess.run(
        [sys.executable, "-m", "podrt", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    assert "podrt can" in done.stdout
    assert "CuPy folder: set CUPY_CACHE_DIR to a folder that can be written" in done.stdout
    assert "cache: set PODRT_CACHE_DIR" in done.stdout


def test_doctor_refuses_a_folder_of_the_users_that_cupy_cannot_make(monkeypatch, tmp_path):
    pytest.importorskip("cupy")
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(blocked / "cupy"))
    assert found("CuPy folder").state == "missing"
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cupy"))
    assert found("CuPy folder") == Finding("CuPy folder", "ok", str(tmp_path / "cupy"))
