"""``podrt warmup`` and ``podrt cache``: what is stored is said, and what is not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from cli_support import HOPPER, SMALL, SMALL_PAGED, run, run_json, small_paged

from podrt import jit, knobs
from podrt.cli.cache import format_age
from podrt.errors import PodrtError, UnsupportedConfigError
from podrt.explore.select import select
from podrt.gpu.arch import get_arch
from podrt.gpu.nominal import H100
from podrt.kernels import cache_write, growth, joins
from podrt.kernels.cache_write import CacheWriteConfig
from podrt.kernels.growth import GrowthConfig
from podrt.kernels.hopper.config import decode_rows_of
from podrt.kernels.joins import JoinConfig
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler
from podrt.spec.attention import make_spec

pytestmark = pytest.mark.usefixtures("empty_cache")


def test_warmup_then_cache_list_and_clear(empty_cache):
    first = run_json("warmup", *SMALL)
    assert len(first["variants"]) == len(small_paged())
    kernels = {*first["variants"], *first["beside"]}
    assert first["compiled"] == len(kernels) == len(small_paged()) + 3
    assert run_json("warmup", *SMALL)["compiled"] == 0
    assert "already cached" in run("warmup", *SMALL)

    entries = run_json("cache", "list")
    assert {entry["name"] for entry in entries} == kernels
    assert all(entry["size_bytes"] > 0 for entry in entries)
    assert f"{len(entries)} kernels" in run("cache", "list")

    assert f"Deleted {len(entries)} kernels" in run("cache", "clear")
    assert run_json("cache", "list") == []
    assert "empty" in run("cache", "list")


def test_warmup_of_one_family():
    first = run_json("warmup", *HOPPER)
    (name,) = first["variants"]
    assert name.startswith("decode_hopper_")
    assert first["compiled"] == 1 + len(first["beside"])


def test_warmup_compiles_all_that_a_server_without_a_compiler_needs():
    beside = run_json("warmup", *HOPPER)["beside"]
    with knobs.scope(disable_jit=True):
        for source in (
            cache_write.source_of(CacheWriteConfig("sm_90a", 64, 16)),
            joins.source_of(JoinConfig("sm_90a", 64, "float16")),
            growth.source_of(GrowthConfig("sm_90a")),
        ):
            assert jit.build(source).origin != "compiled"
            beside.remove(source.name)
    assert not beside
    contiguous = [*HOPPER[:-4], "--page-size", "none", "--decode-rows", "8"]
    assert run_json("warmup", *contiguous)["beside"] == []


def test_warmup_of_the_full_mask():
    (name,) = run_json("warmup", *HOPPER, "--mask", "full")["variants"]
    assert name.endswith("_full")
    names = run("explore", "list", *HOPPER, "--mask", "full", "--mask", "causal").split()
    assert [name.rpartition("_")[2] for name in names] == ["full", "causal"]
    assert name in run("explore", "show", name)
    with pytest.raises(ValueError, match="mask='half': allowed are causal, full"):
        run("explore", "list", "--mask", "half")


def test_warmup_of_narrower_values():
    portable = ["--arch", "sm_90a", "--family", "portable", "--form", "decode"]
    layer = ["--dtype", "float16", "--head-dim", "40", "--v-head-dim", "32", "--page-size", "16"]
    names = run("explore", "list", *portable, *layer).split()
    assert len(names) == 2 and all("_d40v32_" in name for name in names)
    assert run_json("warmup", *portable, *layer)["variants"] == names
    with pytest.raises(ValueError, match="v_head_dim=64: no variant has it; values are narrower"):
        run("explore", "list", "--head-dim", "64", "--v-head-dim", "64")


def test_warmup_of_capped_scores():
    (name,) = run_json("warmup", *HOPPER, "--capped")["variants"]
    assert name.endswith("_causal_softcap")
    assert run("explore", "list", *HOPPER, "--capped").split() == [name]


def test_warmup_of_tree_masks():
    (name,) = run_json("warmup", *HOPPER, "--tree")["variants"]
    assert name.endswith("_causal_tree")
    assert run("explore", "list", *HOPPER, "--tree").split() == [name]
    assert run("explore", "list", *HOPPER, "tree").split() == [name]
    (stats,) = run_json("explore", "stats", name)
    assert stats["name"] == name
    with pytest.raises(ValueError, match="mask=full: trees are causal masks"):
        run("warmup", *HOPPER, "--tree", "--mask", "full")


def test_warmup_of_trees_can_compile_whatever_a_policy_may_choose():
    filters = {"archs": ["sm_90a"], "dtypes": ["float16"], "head_dims": [80], "page_sizes": ["16"]}
    known = set(select(**filters, tree_masks=[True]))
    spec = make_spec(8, 2, 80, 16, "NHD", "float16", tree_mask=True)
    chosen = set()
    for policy in map(parse_policy, POLICIES):
        scheduler = Scheduler(spec, H100, policy)
        chosen |= {v for rows in decode_rows_of(80) for v in scheduler.variants(rows)}
    assert chosen and chosen <= known


POLICIES = ("auto", "hopper", "portable", "1:3", "ctas=4", "decode-only=24", "serial")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("page_size", [None, 16, 48, 64])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120"])
def test_warmup_can_compile_whatever_a_policy_may_choose(arch, head_dim, page_size, cap, causal):
    """A server that sets PODRT_DISABLE_JIT must find all of it."""
    layer = (8, 2, head_dim, page_size, "NHD", "float16", causal)
    spec = make_spec(*layer, window_left=100, logits_soft_cap=cap)
    gpu = replace(H100, arch=get_arch(arch))
    known = select(
        archs=[arch],
        dtypes=["float16"],
        head_dims=[head_dim],
        page_sizes=[str(page_size).lower()],
        masks=["causal" if causal else "full"],
        soft_caps=[cap is not None],
    )
    chosen = set()
    for policy in map(parse_policy, POLICIES):
        with suppress(UnsupportedConfigError):  # the Hopper family elsewhere
            scheduler = Scheduler(spec, gpu, policy)
            chosen |= {v for rows in decode_rows_of(head_dim) for v in scheduler.variants(rows)}
    assert chosen
    assert chosen <= set(known)


def test_warmup_without_a_cache_refuses_before_it_compiles():
    with (
        knobs.scope(disable_cache=True),
        pytest.raises(ValueError, match="unset PODRT_DISABLE_CACHE"),
    ):
        run("warmup", *HOPPER)
    assert jit.stats().compiled == 0


def test_warmup_into_a_folder_that_cannot_be_written_refuses_before_it_compiles(tmp_path):
    blocked = tmp_path / "file"  # stops even the superuser
    blocked.write_text("")
    with (
        knobs.scope(cache_dir=blocked / "cache"),
        pytest.raises(PodrtError, match=r"cannot be written, and 4 of 4 kernels.*PODRT_CACHE_DIR"),
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
    assert result["not_stored"] == [*result["variants"], *result["beside"]]


def test_warmup_under_a_bound_that_is_too_small_says_so():
    with knobs.scope(cache_max_bytes=1000):
        result = run_json("warmup", *SMALL_PAGED, exit_code=1)
    # Each entry makes room for itself; two that are stored at once may make it of each other.
    assert len(result["not_stored"]) >= len(result["variants"]) - 1


def test_cache_path(empty_cache):
    assert run("cache", "path").strip() == str(empty_cache)
    assert not empty_cache.exists()


def test_cache_commands_without_a_cache():
    with (
        knobs.scope(disable_cache=True),
        pytest.raises(ValueError, match="unset PODRT_DISABLE_CACHE"),
    ):
        run("cache", "list")


@pytest.mark.parametrize(
    ("age_s", "text"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (259200, "3 d")]
)
def test_format_age(age_s, text):
    assert format_age(age_s) == text
