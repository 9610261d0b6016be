"""The one way to a compiled kernel: memory, then disk, then NVRTC."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

from podrt import knobs
from podrt.errors import CompileError, MissingKernelError
from podrt.jit.artifact import Build
from podrt.jit.cache import open_cache
from podrt.jit.compiler import compile_recipe
from podrt.jit.key import Recipe, recipe_of
from podrt.jit.memory import on_reset
from podrt.jit.source import KernelSource


@dataclass(frozen=True)
class BuildStats:
    """How often `build` found a kernel where, since the process began or `reset` was called."""

    compiled: int = 0
    disk_hits: int = 0
    memory_hits: int = 0


_COUNTER = {"compiled": "compiled", "disk": "disk_hits", "memory": "memory_hits"}

_lock = threading.Lock()
_memory: dict[str, Build] = {}
_key_locks: dict[str, threading.Lock] = {}
_stats = BuildStats()


def build(source: KernelSource) -> Build:
    """Return the compiled kernel of `source`: from memory, from disk or compiled now.

    Threads that ask for the same kernel compile it once; different kernels compile side by side.

    Raises
    ------
    MissingKernelError
        If it is in no cache and ``PODRT_DISABLE_JIT`` is set.
    CompileError, DeviceError
        As `compile_source`.
    """
    recipe = recipe_of(source)
    key = recipe.key
    with _lock:
        key_lock = _key_locks.setdefault(key, threading.Lock())
    with key_lock:
        with _lock:
            known = _memory.get(key)
        found = replace(known, origin="memory") if known else _load_or_compile(recipe)
        with _lock:
            _memory.setdefault(key, found)
            _count(found)
    return found


def build_many(
    sources: Iterable[KernelSource],
    on_done: Callable[[Build], None] | None = None,
    max_workers: int | None = None,
) -> list[Build]:
    """Build several kernels side by side and return them in the order of `sources`.

    Threads are enough, as NVRTC runs without Python's global lock.

    Parameters
    ----------
    sources : iterable of KernelSource
        What to build.
    on_done : callable, optional
        Called in the caller's thread with each `Build` as it is finished.
    max_workers : int, optional
        Most kernels to compile at once; the CPUs that this process may use if None.

    Raises
    ------
    ValueError
        If `max_workers` is less than 1.
    PodrtError
        The first failure, as `build`; kernels that were not begun by then are left out.
    """
    if max_workers is not None and max_workers < 1:
        raise ValueError(f"max_workers={max_workers}: expected at least 1, or None")
    with ThreadPoolExecutor(max_workers or len(os.sched_getaffinity(0))) as pool:
        futures: list[Future[Build]] = [pool.submit(build, source) for source in sources]
        try:
            for future in as_completed(futures):
                finished = future.result()
                if on_done is not None:
                    on_done(finished)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def stats() -> BuildStats:
    """Return the counters: a warm cache shows ``compiled == 0``."""
    with _lock:
        return _stats


@on_reset
def _forget() -> None:
    global _stats
    with _lock:
        _memory.clear()
        _key_locks.clear()
        _stats = BuildStats()


def _renew_locks() -> None:
    """Open all locks in a forked child, which has none of the threads that may hold them."""
    global _lock
    _lock = threading.Lock()
    _key_locks.clear()


os.register_at_fork(after_in_child=_renew_locks)


def _load_or_compile(recipe: Recipe) -> Build:
    cache = open_cache()
    found = cache.load(recipe) if cache else None
    if found is None:
        if knobs.disable_jit():
            where = f"in {cache.path}" if cache else "in memory, and the disk cache is off"
            raise MissingKernelError(
                f"{recipe.source.name} (key {recipe.key[:16]}) is not {where}, and "
                "PODRT_DISABLE_JIT is set: unset it, or fill the cache first with `podrt warmup`"
            )
        found = _compile(recipe)
        if cache:
            cache.store(found)
    if knobs.jit_verbose():
        _report(found)
    return found


def _count(found: Build) -> None:
    global _stats
    counter = _COUNTER[found.origin]
    _stats = replace(_stats, **{counter: getattr(_stats, counter) + 1})


def _compile(recipe: Recipe) -> Build:
    try:
        return compile_recipe(recipe)
    except CompileError as error:
        if knobs.jit_verbose():
            _log(logging.ERROR, error.listing())
        raise


def _report(found: Build) -> None:
    resources = found.resources
    _log(
        logging.INFO,
        f"{found.source.name}: {found.origin}, compile time {found.compile_time_s:.2f} s, "
        f"{resources.registers} registers, {resources.static_smem_bytes} bytes of static shared "
        f"memory, {resources.spill_store_bytes} bytes of spill stores",
    )


def _log(level: int, message: str) -> None:
    if not knobs.logger.isEnabledFor(logging.INFO):
        # The knob was set by hand, so the line must be seen even if nobody configured logging.
        knobs.logger.setLevel(logging.INFO)
        knobs.logger.addHandler(logging.StreamHandler())
    knobs.logger.log(level, "%s", message)
