"""A child that is forked while other threads compile, render or load can do all of that itself.

Every case runs in a process of its own, as it forks with threads about.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
import warnings

import pytest
from jit_support import SPAWN, SPILLING_TEXT, tiny_source

from podrt import jit, knobs

build_module = importlib.import_module("podrt.jit.build")
load_module = importlib.import_module("podrt.jit.load")
fork_module = importlib.import_module("podrt.jit.fork")

_HANGS_S = 30


def forked(work) -> int:
    """Run `work` in a forked child and return how that ended: 0, or the signal of an alarm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of threads and forks
        pid = os.fork()
    if pid == 0:
        signal.alarm(_HANGS_S)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def build_what_a_thread_of_the_parent_is_compiling():
    compiling, forked_now = threading.Event(), threading.Event()
    real = build_module.compile_recipe

    def slow(recipe):
        compiling.set()
        forked_now.wait()
        return real(recipe)

    def work():
        build_module.compile_recipe = real
        assert jit.build(tiny_source()).cubin

    build_module.compile_recipe = slow
    with knobs.scope(disable_cache=True):
        thread = threading.Thread(target=jit.build, args=(tiny_source(),))
        thread.start()
        compiling.wait()
        status = forked(work)
        forked_now.set()
        thread.join()
    assert status == 0
    assert jit.stats().compiled == 1


def load_while_a_thread_of_the_parent_loads():
    loading, forked_now = threading.Event(), threading.Event()
    build = jit.compile_source(tiny_source())

    def slow(build, device_id):
        loading.set()
        forked_now.wait()

    def work():
        load_module._load = lambda build, device_id: "kernel"
        assert jit.load(build, 0) == "kernel"

    load_module._load = slow
    thread = threading.Thread(target=jit.load, args=(build, 0))
    thread.start()
    loading.wait()
    status = forked(work)
    forked_now.set()
    thread.join()
    assert status == 0


def compile_while_threads_of_the_parent_are_inside_nvrtc():
    """NVRTC's own locks: about a third of such children hung."""
    done = threading.Event()
    source = jit.KernelSource("spills", "sm_90a", SPILLING_TEXT, "spills")

    def keep_compiling():
        while not done.is_set():
            jit.compile_source(source)

    threads = [threading.Thread(target=keep_compiling) for _ in range(2)]
    for thread in threads:
        thread.start()
    statuses = [forked(lambda: jit.compile_source(tiny_source())) for _ in range(12)]
    done.set()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 12


@pytest.mark.parametrize(
    "case",
    [
        build_what_a_thread_of_the_parent_is_compiling,
        load_while_a_thread_of_the_parent_loads,
        compile_while_threads_of_the_parent_are_inside_nvrtc,
    ],
    ids=lambda case: case.__name__,
)
def test_forked_child_does_not_hang(case):
    process = SPAWN.Process(target=case)
    process.start()
    process.join(240)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0


def test_blocks_run_side_by_side_and_a_fork_waits_for_them():
    both_inside = threading.Barrier(3)
    leave = threading.Event()
    order = []

    def block():
        with fork_module.no_fork():
            both_inside.wait(_HANGS_S)
            leave.wait(_HANGS_S)
            order.append("left")

    def fork():
        fork_module._before_fork()
        order.append("forked")
        fork_module._after_fork_in_parent()

    threads = [threading.Thread(target=block) for _ in range(2)]
    for thread in threads:
        thread.start()
    both_inside.wait(_HANGS_S)
    forks = threading.Thread(target=fork)
    forks.start()
    leave.set()
    for thread in (*threads, forks):
        thread.join(_HANGS_S)
    assert order == ["left", "left", "forked"]
    with fork_module.no_fork():  # open again
        pass
