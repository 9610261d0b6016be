from __future__ import annotations

import importlib
import logging
import threading
from dataclasses import replace

import pytest
from jit_support import tiny_source

from podrt import jit, knobs
from podrt.errors import CompileError, MissingKernelError

build_module = importlib.import_module("podrt.jit.build")
render_module = importlib.import_module("podrt.jit.render")


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path):
    jit.reset()
    with knobs.scope(cache_dir=tmp_path, disable_cache=False, disable_jit=False):
        yield
    jit.reset()


def test_compiled_then_memory_then_disk():
    source = tiny_source()
    first = jit.build(source)
    assert (first.origin, jit.build(source).origin) == ("compiled", "memory")
    jit.reset()
    again = jit.build(source)
    assert again.origin == "disk"
    assert (again.cubin, again.key, again.log) == (first.cubin, first.key, first.log)
    assert jit.stats() == jit.BuildStats(compiled=0, disk_hits=1, memory_hits=0)


def test_disabled_cache_writes_nothing(tmp_path):
    with knobs.scope(disable_cache=True):
        jit.build(tiny_source())
        assert jit.build(tiny_source()).origin == "memory"
    assert list(tmp_path.iterdir()) == []


def test_disabled_jit_names_the_missing_variant_and_what_to_do(tmp_path):
    with (
        knobs.scope(disable_jit=True),
        pytest.raises(
            MissingKernelError, match=r"tiny1 .*PODRT_DISABLE_JIT.*podrt warmup"
        ) as caught,
    ):
        jit.build(tiny_source())
    assert str(tmp_path) in str(caught.value)
    jit.build(tiny_source())
    with knobs.scope(disable_jit=True):
        assert jit.build(tiny_source()).origin == "memory"


def test_lineinfo_gives_another_build():
    plain = jit.build(tiny_source())
    with knobs.scope(jit_lineinfo=True):
        assert jit.build(tiny_source()).key != plain.key


def test_threads_asking_for_one_kernel_compile_it_once():
    origins = []
    start = threading.Barrier(8)

    def work():
        start.wait()
        origins.append(jit.build(tiny_source()).origin)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(origins) == ["compiled"] + ["memory"] * 7
    assert jit.stats() == jit.BuildStats(compiled=1, memory_hits=7)


def test_different_kernels_compile_side_by_side(monkeypatch):
    """Both compilations are inside the compiler at once, or the barrier would break."""
    inside = threading.Barrier(2)
    real = build_module.compile_recipe

    def compile_recipe(recipe):
        inside.wait(60)
        return real(recipe)

    monkeypatch.setattr(build_module, "compile_recipe", compile_recipe)
    jit.build_many([tiny_source(1), tiny_source(2)], max_workers=2)


def test_build_many_keeps_the_order_and_reports_each():
    sources = [tiny_source(number) for number in (3, 1, 2, 1)]
    done = []
    builds = jit.build_many(sources, on_done=done.append, max_workers=2)
    assert [build.source for build in builds] == sources
    assert sorted(build.source.name for build in done) == ["tiny1", "tiny1", "tiny2", "tiny3"]
    assert jit.stats().compiled == 3
    assert jit.build_many([]) == []


def test_build_many_raises_the_failure():
    bad = jit.KernelSource("bad", "sm_90a", "nonsense", "bad")
    with pytest.raises(CompileError, match="nonsense"):
        jit.build_many([tiny_source(), bad])
    with pytest.raises(ValueError, match="max_workers=0"):
        jit.build_many([], max_workers=0)


def test_failed_compilation_is_tried_again_and_not_stored(tmp_path):
    bad = jit.KernelSource("bad", "sm_90a", "nonsense", "bad")
    for _ in range(2):
        with pytest.raises(CompileError):
            jit.build(bad)
    assert list(tmp_path.iterdir()) == []
    assert jit.stats() == jit.BuildStats()


def test_header_edited_while_compiling_is_not_cached_under_the_old_key(monkeypatch, tmp_path):
    """Text and headers are read once: what the key says is what the compiler sees."""
    header = tmp_path / "n.cuh"
    header.write_text("#define N 1\n")
    monkeypatch.setattr(render_module, "templates_dir", lambda: tmp_path)
    text = '#include "n.cuh"\nextern "C" __global__ void tiny(int* p) { *p = N; }'
    expected = jit.compile_source(replace(tiny_source(), text=text))
    real = build_module.compile_recipe

    def edit_and_compile(recipe):
        header.write_text("#define N 2\n")
        return real(recipe)

    monkeypatch.setattr(build_module, "compile_recipe", edit_and_compile)
    found = jit.build(replace(tiny_source(), text=text))
    assert (found.key, found.cubin) == (expected.key, expected.cubin)
    header.write_text("#define N 1\n")
    jit.reset()
    assert jit.build(replace(tiny_source(), text=text)).cubin == expected.cubin


def test_knob_turned_while_compiling_is_not_cached_under_the_old_key(monkeypatch):
    real = build_module.compile_recipe

    def turn_and_compile(recipe):
        with knobs.scope(jit_lineinfo=True):
            return real(recipe)

    monkeypatch.setattr(build_module, "compile_recipe", turn_and_compile)
    assert b".debug_line" not in jit.build(tiny_source()).cubin


def test_one_reset_forgets_everything_in_memory(monkeypatch):
    load_module = importlib.import_module("podrt.jit.load")
    monkeypatch.setattr(load_module, "_load", lambda build, device_id: object())
    caches = importlib.import_module("podrt.jit.memory")
    monkeypatch.setattr(caches, "_forgetters", list(caches._forgetters))
    variants = {}
    jit.on_reset(variants.clear)
    first = variants["a"] = jit.load(jit.build(tiny_source()), 0)
    assert jit.load(jit.build(tiny_source()), 0) is first
    jit.reset()
    assert jit.stats() == jit.BuildStats()
    assert variants == {}
    assert jit.load(jit.build(tiny_source()), 0) is not first
    assert jit.stats() == jit.BuildStats(disk_hits=1)


def test_verbose_logs_each_build(caplog):
    with caplog.at_level(logging.INFO, logger="podrt"):
        jit.build(tiny_source(1))
        with knobs.scope(jit_verbose=True):
            jit.build(tiny_source(2))
            jit.build(tiny_source(2))
    (message,) = caplog.messages
    assert message.startswith("tiny2: compiled, compile time")
    assert "registers" in message


def test_verbose_logs_the_whole_source_of_a_refused_kernel(caplog):
    text = "".join(f"int v{number};\n" for number in range(50)) + "nonsense"
    bad = jit.KernelSource("bad", "sm_90a", text, "bad")
    with knobs.scope(jit_verbose=True), pytest.raises(CompileError):
        jit.build(bad)
    (message,) = caplog.messages
    assert all(f"| int v{number};" in message for number in range(50))
