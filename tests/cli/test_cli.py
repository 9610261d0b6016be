"""The command line: every command runs without a GPU, and says what it does and what went wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from podrt import cli, knobs
from podrt.cli import _health
from podrt.cli._health import Finding
from podrt.cli._variants import parse_page_size, select
from podrt.cli.cache import format_age
from podrt.cli.explore import shorten
from podrt.errors import DeviceError, PodrtError
from podrt.jit import find_nvdisasm
from podrt.kernels.hopper.presets import hopper_variant

nvrtc_module = importlib.import_module("podrt.jit.nvrtc")

#: Filters that leave the quickest kernels to compile.
SMALL = ["--arch", "sm_80", "--form", "decode", "--head-dim", "64", "--dtype", "float16"]
SMALL_PAGED = [*SMALL, "--page-size", "16"]
#: One quick variant of the Hopper family, as arguments and as filters of `select`.
HOPPER = ["--arch", "sm_90a", "--family", "hopper", "--form", "decode", "--head-dim", "64"]
HOPPER += ["--dtype", "float16", "--page-size", "16", "--decode-rows", "8"]
HOPPER_FILTERS = {
    "forms": ["decode"],
    "head_dims": [64],
    "dtypes": ["float16"],
    "page_sizes": ["16"],
    "decode_rows": [8],
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path):
    from podrt import jit

    jit.reset()
    with knobs.scope(cache_dir=tmp_path / "cache", disable_jit=False, disable_cache=False):
        yield tmp_path / "cache"


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result.stdout


def run_json(*arguments, exit_code=0):
    return json.loads(run(*arguments, "--json", exit_code=exit_code))


@pytest.mark.parametrize(
    "command",
    [
        ["demo"],
        ["doctor"],
        ["warmup"],
        ["cache", "list"],
        ["cache", "clear"],
        ["cache", "path"],
        ["explore", "list"],
        ["explore", "show"],
        ["explore", "stats"],
    ],
    ids=" ".join,
)
def test_every_command_explains_itself(command):
    text = run(*command, "--help")
    assert len(text.split()) > 20


def test_version():
    from podrt._version import __version__

    assert run("--version").strip() == __version__


def test_list_prints_one_name_a_line():
    names = run("explore", "list", *SMALL_PAGED).split()
    assert names == [config.name for config in _small_paged()]


def test_list_filters_combine():
    rows = run_json("explore", "list", "--arch", "sm_86", "--form", "pod", "--head-dim", "64")
    assert rows
    assert {(r["arch"], r["form"], r["head_dim"]) for r in rows} == {("sm_86", "pod", 64)}


def test_page_sizes_beyond_the_default_ones():
    rows = run_json("explore", "list", *SMALL, "--page-size", "32", "--page-size", "none")
    assert {row["page_size"] for row in rows} == {32, None}


def test_all_architectures():
    from podrt.gpu.arch import ARCHS

    rows = run_json("explore", "list", "--arch", "all", *SMALL[2:])
    assert {row["arch"] for row in rows} == set(ARCHS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--head-dim", "96"], "head_dim=96: no variant has it; there are 128, 256, 64"),
        (["--arch", "sm_75"], "sm_75"),
        (["--decode-rows", "64"], "decode_rows=64: no variant has it; there are 16, 32, 8, none"),
        (["--family", "hopper", "--arch", "sm_80"], "family=hopper: no variant has it"),
        (["--page-size", "big"], "page-size='big'"),
        (["--family", "other"], "there are hopper, portable"),
    ],
)
def test_filters_that_nothing_passes_say_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        run("explore", "list", *arguments)


def test_both_families_are_listed_where_both_exist():
    families = {row["family"] for row in run_json("explore", "list", "--arch", "sm_90a")}
    assert families == {"portable", "hopper"}
    families = {row["family"] for row in run_json("explore", "list", "--arch", "sm_100")}
    assert families == {"portable"}


def test_list_filters_by_family_and_decode_rows():
    rows = run_json("explore", "list", *HOPPER[:4], "--decode-rows", "16")
    assert {(row["family"], row["decode_rows"]) for row in rows} == {("hopper", 16)}
    names = run("explore", "list", "--arch", "sm_90a", "--decode-rows", "16").split()
    assert any("_portable_" in name for name in names)
    assert not any(name.startswith("prefill") for name in names)


def test_a_page_size_that_hopper_cannot_serve_leaves_the_portable_family():
    rows = run_json("explore", "list", "--arch", "sm_90a", "--page-size", "5")
    assert {row["family"] for row in rows} == {"portable"}


def test_show_source_is_plain_text_in_a_pipe():
    (config, *_) = _small_paged()
    source = run("explore", "show", config.name)
    assert config.name in source
    assert "\x1b[" not in source


def test_show_config_is_json():
    (config, *_) = _small_paged()
    assert json.loads(run("explore", "show", config.name, "--what", "config")) == config.to_dict()


def test_show_compiled_texts():
    (config, *_) = _small_paged()
    assert ".target sm_80" in run("explore", "show", config.name, "--what", "ptx")
    assert "registers" in run("explore", "show", config.name, "--what", "log")


@pytest.mark.skipif(find_nvdisasm() is None, reason="needs nvidia-cuda-nvdisasm")
def test_show_sass():
    (config, *_) = _small_paged()
    assert "EXIT" in run("explore", "show", config.name, "--what", "sass")


def test_show_diff_of_two():
    first, second, *_ = _small_paged()
    text = run("explore", "show", first.name, "--what", "config", "--diff", second.name)
    assert f"--- {first.name}" in text
    assert f'-  "warps": {first.warps},' in text
    assert f'+  "warps": {second.warps},' in text


def test_show_diff_of_one_with_itself():
    (config, *_) = _small_paged()
    text = run("explore", "show", config.name, "--what", "source", "--diff", config.name)
    assert text.strip() == "No difference in source."


def test_show_takes_a_part_of_a_name_that_is_unique():
    (config, *_) = _small_paged()
    assert run("explore", "show", config.name[:-1]) == run("explore", "show", config.name)


def test_show_lists_what_an_ambiguous_part_could_mean():
    with pytest.raises(ValueError, match="variants have it in their names") as error:
        run("explore", "show", "decode_portable_sm_80_f16_d64")
    assert _small_paged()[0].name in str(error.value)


def test_show_of_nothing():
    with pytest.raises(ValueError, match="no variant has it in its name"):
        run("explore", "show", "flash")


def test_stats_state_resources_and_where_the_build_came_from():
    rows = run_json("explore", "stats", *SMALL_PAGED)
    for row, config in zip(rows, _small_paged(), strict=True):
        assert row["name"] == config.name
        assert 16 <= row["registers"] <= 255
        assert row["smem_bytes"] >= config.smem_bytes
        assert row["ctas_per_sm"] >= config.ctas_per_sm == row["wanted_ctas_per_sm"]
        assert row["limited_by"]
        assert row["cache"] == "compiled"
    assert {row["cache"] for row in run_json("explore", "stats", *SMALL_PAGED)} == {"memory"}


def test_stats_of_hopper_state_the_registers_of_every_role(monkeypatch):
    (row,) = run_json("explore", "stats", *HOPPER)
    (config,) = select(archs=["sm_90a"], families=["hopper"], **HOPPER_FILTERS)
    assert row["role_registers"] == {
        "producer": config.producer_registers,
        "decode": config.decode_registers,
    }
    assert row["ctas_per_sm"] == row["wanted_ctas_per_sm"] == 1
    monkeypatch.setenv("COLUMNS", "80")
    text = run("explore", "stats", *HOPPER)
    assert f"{config.producer_registers}/{config.decode_registers}" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("form", "roles"),
    [
        ("pod", ["producer", "decode", "prefill"]),
        ("prefill", ["producer", "prefill"]),
        ("decode", ["producer", "decode"]),
    ],
)
def test_roles_are_those_of_the_form(form, roles):
    assert list(hopper_variant(form, "bfloat16", 64).role_registers) == roles


def test_portable_kernels_have_no_roles():
    assert _small_paged()[0].role_registers == {}


def test_stats_fit_in_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("explore", "stats", *SMALL_PAGED).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("regs" in line for line in lines)


def test_warmup_then_cache_list_and_clear(empty_cache):
    first = run_json("warmup", *SMALL)
    assert first["compiled"] == len(first["variants"]) == len(_small_paged())
    assert run_json("warmup", *SMALL)["compiled"] == 0
    assert "already cached" in run("warmup", *SMALL)

    entries = run_json("cache", "list")
    assert {entry["name"] for entry in entries} == set(first["variants"])
    assert all(entry["size_bytes"] > 0 for entry in entries)
    assert f"{len(entries)} kernels" in run("cache", "list")

    assert f"Deleted {len(entries)} kernels" in run("cache", "clear")
    assert run_json("cache", "list") == []
    assert "empty" in run("cache", "list")


def test_warmup_of_one_family():
    first = run_json("warmup", *HOPPER)
    (name,) = first["variants"]
    assert name.startswith("decode_hopper_")
    assert first["compiled"] == 1


def test_warmup_of_the_full_mask():
    (name,) = run_json("warmup", *HOPPER, "--mask", "full")["variants"]
    assert name.endswith("_full")
    names = run("explore", "list", *HOPPER, "--mask", "full", "--mask", "causal").split()
    assert [name.rpartition("_")[2] for name in names] == ["full", "causal"]
    assert name in run("explore", "show", name)
    with pytest.raises(ValueError, match="mask='half': allowed are causal, full"):
        run("explore", "list", "--mask", "half")


def test_warmup_without_a_cache_refuses_before_it_compiles():
    from podrt import jit

    with (
        knobs.scope(disable_cache=True),
        pytest.raises(ValueError, match="unset PODRT_DISABLE_CACHE"),
    ):
        run("warmup", *HOPPER)
    assert jit.stats().compiled == 0


def test_warmup_into_a_folder_that_cannot_be_written_refuses_before_it_compiles(tmp_path):
    from podrt import jit

    blocked = tmp_path / "file"  # stops even the superuser
    blocked.write_text("")
    with (
        knobs.scope(cache_dir=blocked / "cache"),
        pytest.raises(PodrtError, match=r"cannot be written, and 1 of 1 variants.*PODRT_CACHE_DIR"),
    ):
        run("warmup", *HOPPER)
    assert jit.stats().compiled == 0


def test_warmup_is_content_with_a_full_cache_that_cannot_be_written(monkeypatch):
    run("warmup", *HOPPER)
    monkeypatch.setattr("podrt.jit.cache.is_writable", lambda folder: False)
    assert run_json("warmup", *HOPPER)["not_stored"] == []


def test_warmup_says_what_was_not_stored(monkeypatch):
    monkeypatch.setattr("podrt.jit.DiskCache.store", lambda cache, build: None)
    result = run_json("warmup", *HOPPER, exit_code=1)
    assert result["not_stored"] == result["variants"]


def test_warmup_under_a_bound_that_is_too_small_says_so():
    with knobs.scope(cache_max_bytes=1000):
        result = run_json("warmup", *SMALL_PAGED, exit_code=1)
    assert len(result["not_stored"]) == len(result["variants"]) - 1


def test_cache_path(empty_cache):
    assert run("cache", "path").strip() == str(empty_cache)
    assert not empty_cache.exists()


def test_cache_commands_without_a_cache():
    with (
        knobs.scope(disable_cache=True),
        pytest.raises(ValueError, match="unset PODRT_DISABLE_CACHE"),
    ):
        run("cache", "list")


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
    assert names == [
        "podrt",
        "driver",
        "CuPy",
        "CuPy folder",
        "GPU",
        "cuda.core",
        "NVRTC",
        "nvdisasm",
        "cache",
        "knobs",
    ]
    assert not empty_cache.exists()


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


def test_doctor_prints_its_table_whatever_the_home(tmp_path):
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
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(blocked / "cupy"))
    assert found("CuPy folder").state == "missing"
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cupy"))
    assert found("CuPy folder") == Finding("CuPy folder", "ok", str(tmp_path / "cupy"))


def test_main_prints_an_error_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["podrt", "explore", "list", "--page-size", "[big]"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: page-size='[big]'")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("fault", [TypeError, RuntimeError, KeyError, ZeroDivisionError])
def test_main_lets_a_fault_of_podrt_through(monkeypatch, fault):
    def broken():
        raise fault("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(fault, match="a bug"):
        cli.main()


@pytest.mark.parametrize(
    "error", [DeviceError("no GPU"), FileNotFoundError(2, "No such file", "x.csv")]
)
def test_main_prints_what_a_user_can_mend(monkeypatch, capsys, error):
    def refuse():
        raise error

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith(f"error: {error}")


def test_shorten_keeps_only_what_differs():
    names = ["pod_d64_p1_page16", "pod_d64_p2_page16"]
    assert shorten(names) == (["p1", "p2"], "variants pod_d64_*_page16")
    assert shorten(["pod_d64"]) == (["pod_d64"], None)
    assert shorten(["a_b", "c_d"]) == (["a_b", "c_d"], None)


@pytest.mark.parametrize(
    ("age_s", "text"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (259200, "3 d")]
)
def test_format_age(age_s, text):
    assert format_age(age_s) == text


def test_parsers():
    assert parse_page_size("none") is None
    assert parse_page_size("16") == 16


def _small_paged():
    return select(
        archs=["sm_80"],
        forms=["decode"],
        head_dims=[64],
        dtypes=["float16"],
        page_sizes=["16"],
    )
