"""``podrt bench`` where it measures nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bench_support import make_case, make_results, make_rows
from typer.testing import CliRunner

from podrt import cli
from podrt.bench.results import save
from podrt.cli import bench, bench_serving
from podrt.errors import DeviceError


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


def test_list_needs_no_gpu():
    result = invoke("--suite", "peers", "--list")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 14
    narrowed = invoke("--suite", "peers", "--suite", "solo", "--only", "64-8", "--list")
    assert len(narrowed.stdout.splitlines()) == 12


def test_compare_prints_what_changed(tmp_path):
    for name, us in (("a", 100.0), ("b", 80.0)):
        save(make_results(make_rows(make_case(), {"auto": us})), tmp_path / f"{name}.json")
    result = invoke("--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    assert "faster" in result.stdout
    assert "0.800" in result.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory; pass a file that can be read"),
        (b"no JSON", "no results of podrt bench"),
        (b"\xff", "expected text in UTF-8, got invalid start byte at byte 0"),
    ],
)
def test_results_that_cannot_be_read_are_named_with_the_option(tmp_path, content, said):
    path = tmp_path / "paper.json"
    if content is not None:
        path.write_bytes(content)
    for option, arguments in {
        "--compare": ("--compare", path, path),
        "--out": ("--plot", "--out", tmp_path),
    }.items():
        error = invoke(*arguments).exception
        assert isinstance(error, ValueError)
        assert str(error).startswith(f"{option} {path}: {said}")


def test_plot_reads_the_only_results_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="none; name a folder with --out"):
        bench._results_folder(None)
    results = make_results(make_rows(make_case(), {"auto": 1.0}))
    save(results, tmp_path / "bench/results/h100/paper.json")
    assert bench._results_folder(None).name == "h100"
    save(results, tmp_path / "bench/results/h200/paper.json")
    with pytest.raises(ValueError, match="several"):
        bench._results_folder(None)
    assert bench._results_folder(tmp_path) == tmp_path


def test_measuring_without_a_gpu_says_so(monkeypatch):
    def no_gpu():
        raise DeviceError("no GPU is visible")

    monkeypatch.setattr(bench, "current_device", no_gpu)
    result = invoke("--suite", "peers", "--peers", "none")
    assert isinstance(result.exception, DeviceError)


def test_a_part_never_replaces_a_whole_file(tmp_path, monkeypatch):
    from podrt.gpu.arch import get_arch
    from podrt.gpu.device import DeviceInfo

    device = DeviceInfo(
        0, "NVIDIA H100 80GB HBM3", get_arch("sm_90a"), 132, 1 << 36, 1 << 25, 3352.0
    )
    monkeypatch.setattr(bench, "current_device", lambda: device)
    save(make_results(), tmp_path / "peers.json")
    result = invoke("--suite", "peers", "--only", "64-8", "--peers", "none", "--out", tmp_path)
    assert "add --resume" in str(result.exception)
    nothing = invoke("--suite", "peers", "--only", "no such", "--peers", "none")
    assert "no case has that" in str(nothing.exception)


def test_an_engine_is_measured_with_the_rest_of_the_command_line(monkeypatch):
    asked = []
    module = SimpleNamespace(main=asked.append)
    monkeypatch.setattr(bench_serving, "import_module", lambda name: module)
    result = invoke("serving", "vllm", "--modes", "FULL", "--help")
    assert result.exit_code == 0, result.output
    assert asked == [["--modes", "FULL", "--help"]]


def test_an_unknown_engine_and_one_that_is_not_there_are_named(monkeypatch):
    with pytest.raises(ValueError, match="engine='sglang': allowed are transformers, vllm"):
        raise invoke("serving", "sglang").exception

    def absent(name):
        raise ModuleNotFoundError(name="flash_attn")

    monkeypatch.setattr(bench_serving, "import_module", absent)
    for found, missing in ((None, "vllm"), (object(), "flash_attn")):
        monkeypatch.setattr(bench_serving, "find_spec", lambda name, found=found: found)
        with pytest.raises(ValueError, match=rf"{missing} is not installed; see docs/vllm\.md"):
            raise invoke("serving", "vllm").exception


def test_help_of_an_engine_that_is_not_there_is_shown(monkeypatch):
    monkeypatch.setattr(bench_serving, "find_spec", lambda name: None)
    result = invoke("serving", "vllm", "--help")
    assert result.exit_code == 0
    assert "--budgets" in result.stdout
