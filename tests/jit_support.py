"""Small kernels and entry points of child processes, shared by the tests of ``podrt.jit``."""

from __future__ import annotations

import os
import signal
import warnings
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

from podrt import jit, knobs

SPAWN = get_context("spawn")

SPILLING_TEXT = """
extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* p) {
  float x[64];
  #pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = p[i * threadIdx.x];
  for (int j = 0; j < 50; ++j) {
    #pragma unroll
    for (int i = 0; i < 64; ++i) x[i] = x[i] * x[(i + 7) % 64] + p[j];
  }
  float y = 0;
  #pragma unroll
  for (int i = 0; i < 64; ++i) y += x[i] * p[i];
  p[0] = y;
}
"""


def tiny_source(number: int = 1, arch: str = "sm_90a") -> jit.KernelSource:
    """A kernel that compiles in a moment; different for every `number`."""
    text = f'extern "C" __global__ void tiny(float* p) {{ p[threadIdx.x] += {number}.f; }}\n'
    return jit.KernelSource(name=f"tiny{number}", arch=arch, text=text, entry="tiny")


def race(root: Path, barrier: Barrier, numbers: tuple[int, ...]) -> None:
    """Build `numbers` at the same moment as the other processes; any warning is a failure."""
    with knobs.scope(cache_dir=root), warnings.catch_warnings():
        warnings.simplefilter("error")
        barrier.wait(60)
        for number in numbers:
            assert jit.build(tiny_source(number)).cubin.startswith(b"\x7fELF")


def build_and_die(root: Path, fsync_call: int) -> None:
    """Kill this process at its `fsync_call`-th step of making a cache entry durable."""
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fsync_call:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    with knobs.scope(cache_dir=root):
        jit.build(tiny_source())


def build_without_jit(root: Path, numbers: tuple[int, ...]) -> None:
    """Build from a warm cache in a process where compiling is an error."""
    with knobs.scope(cache_dir=root, disable_jit=True):
        jit.build_many([tiny_source(number) for number in numbers])
    assert jit.stats() == jit.BuildStats(compiled=0, disk_hits=len(numbers))
