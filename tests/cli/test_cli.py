"""The command line: every command runs without a GPU, and says what it does and what went wrong."""

from __future__ import annotations

import json

import pytest
from cli_support import HOPPER, SMALL, SMALL_PAGED, run, run_json, small_paged

from podrt import cli, knobs
from podrt.cli._stats import shorten
from podrt.errors import DeviceError
from podrt.explore.names import alias_of
from podrt.explore.select import find, select
from podrt.jit import find_nvdisasm
from podrt.kernels.hopper.presets import hopper_variant
from podrt.workloads.lengths import parse_page_size, parse_paged

pytestmark = pytest.mark.usefixtures("empty_cache")

#: What `HOPPER` says, as filters of `select`.
HOPPER_FILTERS = {
    "forms": ["decode"],
    "head_dims": [64],
    "dtypes": ["float16"],
    "page_sizes": ["16"],
    "decode_rows": [8],
}


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
        ["explore", "check"],
        ["explore", "sweep"],
        ["explore", "repro"],
        ["explore", "roofline"],
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
    assert names == [config.name for config in small_paged()]


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
        (["--head-dim", "100"], "head_dim=100: allowed are multiples of 8 from 32 to 256"),
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


def test_variants_are_made_for_pages_of_any_size():
    rows = run_json("explore", "list", "--arch", "sm_90a", "--page-size", "5")
    assert {row["family"] for row in rows} == {"portable", "hopper"}
    assert {row["page_size"] for row in rows} == {5}


def test_show_source_is_plain_text_in_a_pipe():
    (config, *_) = small_paged()
    source = run("explore", "show", config.name)
    assert config.name in source
    assert "\x1b[" not in source


def test_show_config_is_json():
    (config, *_) = small_paged()
    assert json.loads(run("explore", "show", config.name, "--what", "config")) == config.to_dict()


def test_show_compiled_texts():
    (config, *_) = small_paged()
    assert ".target sm_80" in run("explore", "show", config.name, "--what", "ptx")
    assert "registers" in run("explore", "show", config.name, "--what", "log")


@pytest.mark.skipif(find_nvdisasm() is None, reason="needs nvidia-cuda-nvdisasm")
def test_show_sass():
    (config, *_) = small_paged()
    assert "EXIT" in run("explore", "show", config.name, "--what", "sass")


def test_show_diff_of_two():
    first, second, *_ = small_paged()
    text = run("explore", "show", first.name, "--what", "config", "--diff", second.name)
    assert f"--- {first.name}" in text
    assert f'-  "warps": {first.warps},' in text
    assert f'+  "warps": {second.warps},' in text


def test_show_diff_of_one_with_itself():
    (config, *_) = small_paged()
    text = run("explore", "show", config.name, "--what", "source", "--diff", config.name)
    assert text.strip() == "No difference in source."


def test_show_takes_a_part_of_a_name_that_is_unique():
    (config, *_) = small_paged()
    assert run("explore", "show", config.name[:-1]) == run("explore", "show", config.name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["pod-hopper-bf16-d128-page16-r8", "--head-dim", "80"], "--head-dim: of the layer that"),
        (["--batch", "9@99 + 99", "--arch", "sm_80"], "--arch: --batch is run on a GPU"),
    ],
)
def test_show_refuses_options_that_it_would_ignore(options, reason):
    with pytest.raises(ValueError, match=reason):
        run("explore", "show", *options)


def test_show_lists_what_an_ambiguous_part_could_mean():
    with pytest.raises(ValueError, match="variants have it in their names") as error:
        run("explore", "show", "decode_portable_sm_80_f16_d64")
    assert alias_of(small_paged()[0]) in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["pod-hopper-bf16-d128-page16-r8"],
        ["pod", "hopper", "bf16", "d128", "page16", "r8"],
        ["hopper-bf16", "pod", "head_dim=128", "decode_rows=8", "page_size=16"],
    ],
)
def test_show_takes_words(words):
    config = json.loads(run("explore", "show", *words, "--what", "config"))
    expected = {"form": "pod", "dtype": "bfloat16", "head_dim": 128, "decode_rows": 8}
    assert expected.items() <= config.items()
    assert config["page_size"] == 16
    assert config["causal"]


@pytest.mark.parametrize(
    ("arguments", "alias"),
    [
        (["2048@16384 + 64x16384"], "pod-hopper-bf16-d128-page16-r8"),
        (["64x16384", "--heads", "64/2"], "decode-hopper-bf16-d128-page16-r32"),
        (["2048@16384", "--page-size", "0"], "prefill-hopper-bf16-d128-contiguous-k176"),
        (["512@512 + 64x900", "--head-dim", "256"], "pod-hopper-bf16-d256-page16-r8"),
        (
            ["512@512 + 64x900", "--head-dim", "192", "--v-head-dim", "128"],
            "pod-hopper-bf16-d192v128-page16-r8",
        ),
        (
            ["512@512 + 64x900", "--policy", "portable"],
            "pod-portable-sm_90a-bf16-d128-page16-c2",
        ),
    ],
)
def test_show_what_a_batch_would_run(arguments, alias):
    options = ["--batch", *arguments, "--gpu", "h100", "--what", "config"]
    assert json.loads(run("explore", "show", *options)) == find([alias]).to_dict()


def test_show_of_a_batch_with_two_launches_takes_a_word():
    options = ["--batch", "2048@16384 + 64x16384", "--policy", "serial", "--what", "config"]
    with pytest.raises(ValueError, match=r"prefill.*decode"):
        run("explore", "show", *options)
    assert json.loads(run("explore", "show", "decode", *options))["form"] == "decode"


def test_show_of_no_variant():
    with pytest.raises(ValueError, match="pass a variant"):
        run("explore", "show")


def test_show_of_nothing():
    with pytest.raises(ValueError, match="no variant has it in its name"):
        run("explore", "show", "flash")


def test_stats_state_resources_and_where_the_build_came_from():
    rows = run_json("explore", "stats", *SMALL_PAGED)
    for row, config in zip(rows, small_paged(), strict=True):
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
    assert small_paged()[0].role_registers == {}


def test_stats_fit_in_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("explore", "stats", *SMALL_PAGED).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("regs" in line for line in lines)


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


@pytest.mark.parametrize("text", ["none", "None", "0", " 0 "])
def test_contiguous_caches_are_spelt_in_one_way(text):
    assert parse_page_size(text) is None
    with pytest.raises(ValueError, match="podrt demo has a paged cache; pass the tokens"):
        parse_paged(text, "podrt demo")
    names = run("explore", "list", *SMALL, "--page-size", text).split()
    assert all("_contiguous_" in name for name in names)
    assert run_json("plan", "1024", "--gpu", "h100", "--page-size", text)
    command = ("explore", "show", "--batch", "1024", "--gpu", "h100", "--what", "config")
    assert '"page_size": null' in run(*command, "--page-size", text)


def test_page_sizes():
    assert parse_page_size("16") == parse_paged("16", "podrt demo") == 16
    for text in ("", "-1", "1.5", "large"):
        with pytest.raises(ValueError, match=f"^page-size='{text}': expected tokens of a page"):
            parse_page_size(text)


@pytest.mark.parametrize("command", ["list", "clear"])
@pytest.mark.parametrize("name", ["file", "file/below", "dangling"])
def test_a_cache_folder_that_is_none_is_said(tmp_path, command, name):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    named = f"{tmp_path / name.partition('/')[0]} is no folder; set PODRT_CACHE_DIR to a folder"
    with knobs.scope(cache_dir=tmp_path / name), pytest.raises(ValueError, match=named):
        run("cache", command)


def test_a_cache_folder_that_cannot_be_read_is_said(empty_cache, monkeypatch):
    empty_cache.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"{empty_cache} cannot be read; set PODRT_CACHE_DIR"):
        run("cache", "list")


def test_a_cache_folder_that_is_not_there_yet_is_empty(tmp_path):
    with knobs.scope(cache_dir=tmp_path / "not" / "yet"):
        assert "The cache is empty." in run("cache", "list")


def test_stats_of_phases_and_shared_memory():
    rows = run_json("explore", "stats", *SMALL_PAGED, "--phases")
    assert all(len(row["phases_s"]) >= 3 for row in rows)
    assert "binary KiB" in run("explore", "stats", *SMALL_PAGED, "--phases")
    text = run("explore", "stats", *HOPPER, "--smem")
    assert "FirstLane" in text
    with pytest.raises(ValueError, match="one of them"):
        run("explore", "stats", *HOPPER, "--smem", "--mix")
