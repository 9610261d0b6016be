from __future__ import annotations

import errno
import importlib
import json
import os
import stat
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from jit_support import SPAWN, build_and_die, build_without_jit, race, tiny_source

from podrt import jit, knobs
from podrt._version import __version__

cache_module = importlib.import_module("podrt.jit.cache")
nvrtc_module = importlib.import_module("podrt.jit.nvrtc")
render_module = importlib.import_module("podrt.jit.render")


@pytest.fixture(scope="module")
def build():
    return jit.compile_source(tiny_source())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_warned", set())
    return jit.DiskCache(tmp_path / "cache")


@pytest.fixture
def entry(cache, build):
    """Folder of the one entry of `cache`."""
    cache.store(build)
    return cache.list()[0].path


def temps(root: Path) -> list[Path]:
    return list(root.glob(".tmp-*"))


def spawn(target, *argument_lists):
    """Run `target` in one process for each list of arguments; return their exit codes."""
    processes = [SPAWN.Process(target=target, args=arguments) for arguments in argument_lists]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def test_round_trip(cache, build):
    assert cache.load(build.recipe) is None
    cache.store(build)
    assert cache.load(build.recipe) == replace(build, origin="disk")


def test_entry_is_readable_by_people(entry, build):
    assert entry.name == f"tiny1.{build.key[:16]}"
    assert (entry / "kernel.cu").read_text() == build.source.text
    assert (entry / "kernel.cubin").read_bytes() == build.cubin
    meta = json.loads((entry / "meta.json").read_text())
    assert meta["key"] == build.key
    assert meta["resources"]["registers"] == build.resources.registers
    assert "--gpu-architecture=sm_90a" in meta["options"]
    assert sorted(os.listdir(entry)) == ["headers.json", "kernel.cu", "kernel.cubin", "meta.json"]


def test_entry_has_all_that_compiles_it_again(cache, monkeypatch, tmp_path):
    (tmp_path / "n.cuh").write_text("#define N 5\n")
    monkeypatch.setattr(render_module, "templates_dir", lambda: tmp_path)
    text = '#include "n.cuh"\nextern "C" __global__ void tiny(int* p) { *p = N; }'
    cache.store(jit.compile_source(replace(tiny_source(), text=text)))
    (tmp_path / "n.cuh").unlink()
    folder = cache.list()[0].path
    meta = json.loads((folder / "meta.json").read_text())
    headers = json.loads((folder / "headers.json").read_text())
    assert headers == {"n.cuh": "#define N 5\n"}
    again = nvrtc_module.run_nvrtc(
        (folder / "kernel.cu").read_text(), "tiny1.cu", meta["options"], list(headers.items())
    )
    assert again.cubin == (folder / "kernel.cubin").read_bytes()


def truncate(name):
    def damage(entry):
        path = entry / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def flip_a_byte(entry):
    content = bytearray((entry / "kernel.cubin").read_bytes())
    content[-9] ^= 1
    (entry / "kernel.cubin").write_bytes(content)


def edit_meta(**changes):
    def damage(entry):
        meta = json.loads((entry / "meta.json").read_text())
        (entry / "meta.json").write_text(json.dumps({**meta, **changes}))

    return damage


def empty_the_folder(entry):
    for file in entry.iterdir():
        file.unlink()


def put_a_file_in_its_place(entry):
    empty_the_folder(entry)
    entry.rmdir()
    entry.write_text("not a folder")


@pytest.mark.parametrize(
    "damage",
    [
        truncate("kernel.cubin"),
        truncate("kernel.cu"),
        lambda entry: (entry / "headers.json").write_text("{}x"),
        truncate("meta.json"),
        flip_a_byte,
        edit_meta(key="0" * 64),
        edit_meta(schema=-1),
        edit_meta(resources=None),
        edit_meta(compile_time_s="long"),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").write_bytes(b"\xff\xfe"),
        lambda entry: (entry / "kernel.cubin").unlink(),
        empty_the_folder,
        put_a_file_in_its_place,
    ],
)
def test_bad_entry_is_a_miss_with_one_warning_and_is_replaced(cache, entry, build, damage):
    damage(entry)
    with pytest.warns(RuntimeWarning, match="is ignored") as caught:
        assert cache.load(build.recipe) is None
    assert len(caught) == 1
    cache.store(build)
    assert cache.load(build.recipe) == replace(build, origin="disk")
    assert not temps(cache.path)


def test_storing_what_is_there_keeps_the_first_entry(cache, entry, build):
    before = (entry / "kernel.cubin").stat().st_ino
    cache.store(build)
    assert (entry / "kernel.cubin").stat().st_ino == before
    assert not temps(cache.path)


def test_stale_temporary_folders_are_swept_and_young_ones_kept(cache, entry, build):
    old, young = cache.path / ".tmp-old", cache.path / ".tmp-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "kernel.cu").write_text("half")
    long_ago = time.time() - 2 * 3600
    os.utime(old, (long_ago, long_ago))
    cache.store(build)
    assert temps(cache.path) == [young]


def test_list_and_clear(cache, build):
    assert cache.list() == ()
    assert cache.clear() == 0
    cache.store(build)
    (found,) = cache.list()
    assert (found.name, found.key) == ("tiny1", build.key[:16])
    assert found.size_bytes > len(build.cubin)
    assert 0 <= found.age_s < 600
    assert cache.clear() == 1
    assert cache.list() == ()
    assert cache.path.is_dir()


def test_clear_leaves_alone_what_is_not_podrts(cache, entry):
    photos, lookalike = cache.path / "photos", cache.path / "mine.0123456789abcdef"
    for folder in (photos, lookalike):
        folder.mkdir()
        (folder / "picture.jpg").write_text("!")
    assert cache.clear() == 1
    assert sorted(os.listdir(cache.path)) == ["mine.0123456789abcdef", "photos"]


def test_folder_that_cannot_be_made_warns_once_and_stays_in_memory(tmp_path, cache, build):
    """A file stands where the folder should be, which stops even the superuser."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    jit.reset()
    with knobs.scope(cache_dir=blocked / "cache"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in (1, 2, 1):
            assert jit.build(tiny_source(number)).cubin
    assert [str(w.message)[:50] for w in caught] == [
        "podrt: compiled kernels are kept in memory only: /"
    ]
    assert jit.stats() == jit.BuildStats(compiled=2, memory_hits=1)
    assert jit.DiskCache(blocked / "cache").list() == ()


@pytest.fixture
def no_home(monkeypatch):
    """A user whom the user database does not know, as containers have them."""

    def getpwuid(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    with knobs.scope(cache_dir=None, disable_cache=False):
        yield monkeypatch


@pytest.mark.parametrize("home", [None, "", "not/absolute"])
def test_no_home_folder_warns_once_and_stays_in_memory(no_home, cache, home):
    if home is not None:
        no_home.setenv("HOME", home)
    with pytest.warns(RuntimeWarning, match="no home folder; set PODRT_CACHE_DIR"):
        assert jit.open_cache() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jit.open_cache() is None


def test_home_is_that_of_the_user_database_where_the_variable_is_empty(monkeypatch, tmp_path):
    monkeypatch.setattr("pwd.getpwuid", lambda uid: SimpleNamespace(pw_dir=str(tmp_path)))
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    with knobs.scope(cache_dir=None, disable_cache=False):
        assert jit.open_cache().path == tmp_path / ".cache" / "podrt" / __version__


def test_cache_folder_needs_no_home_where_a_variable_names_it(no_home, tmp_path):
    no_home.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jit.open_cache().path == tmp_path / "podrt" / __version__


def test_knobs_choose_the_folder(monkeypatch, tmp_path):
    with knobs.scope(cache_dir=tmp_path, disable_cache=False):
        assert jit.open_cache().path == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with knobs.scope(cache_dir=None, disable_cache=False):
        assert jit.open_cache().path == tmp_path / "podrt" / __version__
    with knobs.scope(disable_cache=True):
        assert jit.open_cache() is None
    assert list(tmp_path.iterdir()) == []


def test_processes_race_for_one_kernel_and_for_many(tmp_path):
    numbers = (1, 2, 3, 4)
    barrier = SPAWN.Barrier(8)
    # All meet at kernel 1; then half of them go through the others backwards.
    orders = [numbers if i % 2 else (1, *reversed(numbers[1:])) for i in range(8)]
    assert spawn(race, *((tmp_path, barrier, order) for order in orders)) == [0] * 8
    assert [entry.name for entry in jit.DiskCache(tmp_path).list()] == [
        f"tiny{number}" for number in numbers
    ]
    assert not temps(tmp_path)
    # A second process finds them all: it compiles nothing.
    assert spawn(build_without_jit, (tmp_path, numbers)) == [0]


def test_killed_while_writing_leaves_no_broken_entry(tmp_path, build):
    steps = range(1, 7)  # four files, their folder, the cache's folder
    roots = [tmp_path / str(step) for step in steps]
    assert spawn(build_and_die, *zip(roots, steps, strict=True)) == [-9] * len(roots)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [jit.DiskCache(root).load(build.recipe) for root in roots]
    assert [build is not None for build in found] == [False] * 5 + [True]
    assert [len(temps(root)) for root in roots] == [1] * 5 + [0]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_file_system_without_fsync_still_holds_a_cache(cache, build, monkeypatch, code):
    def fsync(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.store(build)
    assert cache.load(build.recipe) == replace(build, origin="disk")


def test_failing_disk_is_not_taken_for_one_without_fsync(cache, build, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        cache.store(build)
    assert cache.list() == ()


def test_new_cache_folder_is_private_and_an_old_one_keeps_its_permissions(tmp_path, build):
    private, shared = jit.DiskCache(tmp_path / "private"), jit.DiskCache(tmp_path / "shared")
    shared.path.mkdir()
    shared.path.chmod(0o775)
    for cache in (private, shared):
        cache.store(build)
    modes = [stat.S_IMODE(cache.path.stat().st_mode) for cache in (private, shared)]
    assert modes == [0o700, 0o775]


def test_least_recently_used_entries_make_room(tmp_path):
    builds = [jit.compile_source(tiny_source(number)) for number in (1, 2, 3, 4)]
    unbounded = jit.DiskCache(tmp_path)
    for age_s, build in zip((300, 200, 100), builds, strict=False):
        unbounded.store(build)
        then = time.time() - age_s
        (entry,) = (e for e in unbounded.list() if e.name == build.source.name)
        os.utime(entry.path / "meta.json", (then, then))
    assert unbounded.load(builds[0].recipe)  # used now, so that the second is the oldest
    room = sum(entry.size_bytes for entry in unbounded.list()) + 100
    jit.DiskCache(tmp_path, max_bytes=room).store(builds[3])
    assert [entry.name for entry in unbounded.list()] == ["tiny1", "tiny3", "tiny4"]
    assert not temps(tmp_path)


def test_bound_too_small_for_one_kernel_keeps_the_last(tmp_path):
    cache = jit.DiskCache(tmp_path, max_bytes=1)
    for number in (1, 2):
        cache.store(jit.compile_source(tiny_source(number)))
    assert [entry.name for entry in cache.list()] == ["tiny2"]


def test_bound_comes_from_the_knob(tmp_path):
    with knobs.scope(cache_dir=tmp_path, disable_cache=False, cache_max_bytes=1):
        jit.reset()
        jit.build_many([tiny_source(number) for number in (1, 2)], max_workers=1)
    assert len(jit.DiskCache(tmp_path).list()) == 1
