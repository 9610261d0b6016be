"""The suite ``host``: host time of `plan` and `run`, and what a graph's replay costs the GPU."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from podrt.attention import HybridAttention
from podrt.bench.environment import cpu_model, describe
from podrt.bench.host_batches import (
    Framework,
    HostBatch,
    Tensors,
    decodes,
    default_stream,
    frameworks,
    make_tensors,
    short_prompts,
)
from podrt.bench.host_rows import HostRow, What, row_of
from podrt.bench.host_timing import (
    Call,
    interpreter_ns,
    time_after,
    time_alone,
    time_apart,
    time_bursts,
    time_steps,
)
from podrt.bench.timing import Work, capture_graph, time_all
from podrt.cache_write import write_cache
from podrt.gpu.device import DeviceInfo, current_device, load_cupy
from podrt.kernels.hopper.config import HOPPER_ARCH

#: Name of the suite, and of its file.
HOST_SUITE = "host"

LAYERS = 32
_SAMPLES = 300
_FEW_SAMPLES = 60
_STEP_SAMPLES = 100
_REPLAY_SAMPLES = 100
#: Memory that other work touches between two calls in a row of cold caches: more than a core's own.
_OTHER_BYTES = 4 * 2**20
#: Batches of more requests than this are timed less often.
_MANY_REQUESTS = 10_000

_DECODES = decodes(256)
_HYBRID = decodes(31, prefill=512)
_RUN_BATCHES = (_DECODES, _HYBRID)
_PLAN_BATCHES = (
    _DECODES,
    decodes(32),
    decodes(255, prefill=512),
    decodes(255, prefill=512, moves_on=True),
    _HYBRID,
    decodes(31, prefill=512, moves_on=True),
    decodes(4096),
    decodes(4095, prefill=512),
    short_prompts(80_000, 16, (32, 8)),
    short_prompts(80_000, 16, (1, 1)),
)
_RESERVED_PLAN_BATCHES = (_DECODES, _HYBRID)
_GROWING_BATCHES = (_DECODES, decodes(32))
_REPLAY_HYBRID = decodes(64, prefill=2048, kv_len=8192)
_REPLAY_DECODES = (decodes(64, kv_len=4096), _DECODES)

#: Median times that are allowed, in us.
BARS_US = {
    **{("run", f"{batch.name}, out="): 10.0 for batch in _RUN_BATCHES},
    **{("run", f"{batch.name}, no out"): 15.0 for batch in _RUN_BATCHES},
    **{("first run", f"{batch.name}, out="): 25.0 for batch in _RUN_BATCHES},
    **{("step", f"{batch.name}, {LAYERS} layers"): 1000.0 for batch in _RUN_BATCHES},
    ("plan", "256 decodes"): 70.0,
    ("plan", "1 prefill(512) + 255"): 120.0,
    ("plan", "1 prefill(512) + 255, the next chunk at every step"): 120.0,
    ("plan", "1 prefill(512) + 31"): 200.0,
    ("plan", "1 prefill(512) + 31, the next chunk at every step"): 200.0,
    ("plan", "4096 decodes"): 600.0,
    ("plan", "1 prefill(512) + 4095"): 600.0,
    ("plan", "80000 of 16 tokens, 32/8 heads"): 8000.0,
    ("plan", "80000 of 16 tokens, 1/1 heads"): 8000.0,
}


def host_environment(device: DeviceInfo) -> dict[str, Any]:
    """Return the environment of a run; the CPU is what matters here.

    Virtual machines of one CPU model differ twofold: ``interpreter_ns`` says how fast this one is.
    """
    packages = {name: _version(name) for name in ("torch", "numpy", "cuda-bindings")}
    return {
        **describe(device, []),
        "cpu": cpu_model(),
        "interpreter_ns": interpreter_ns(),
        "python": platform.python_version(),
        **{name: found for name, found in packages.items() if found},
    }


def measure_host(on_row: Callable[[HostRow], object] = lambda row: None) -> list[HostRow]:
    """Time everything on the current GPU, with the frameworks that are installed.

    Parameters
    ----------
    on_row : callable
        Called with each row when it is known.
    """
    rows = []
    for row in _rows():
        rows.append(row)
        on_row(row)
        load_cupy().get_default_memory_pool().free_all_blocks()
    return rows


def _rows() -> Iterator[HostRow]:
    for framework in frameworks():
        with default_stream():
            for batch in _RUN_BATCHES:
                yield from _run_rows(batch, framework)
                yield from _step_rows(batch, framework)
            for batch in _PLAN_BATCHES:
                yield _plan_row(batch, framework)
        for batch in _RESERVED_PLAN_BATCHES:
            yield _reserved_plan_row(batch, framework)
        for batch in _GROWING_BATCHES:
            yield _growth_row(batch, framework)
    with load_cupy().cuda.Stream(non_blocking=True):
        yield from _hybrid_replay_rows(_REPLAY_HYBRID)
        for batch in _REPLAY_DECODES:
            yield from _decode_replay_rows(batch)


def _run_rows(batch: HostBatch, framework: Framework) -> Iterator[HostRow]:
    attention = _attention(batch)
    tensors = make_tensors(batch, framework, LAYERS)
    with_out, without = _layer_calls(attention, tensors)
    prepare = _planner(attention, batch, tensors.block_table)
    prepare(0)
    row = partial(_row, batch, framework)
    yield row("run", "out=", time_bursts(with_out, _wait, _SAMPLES))
    yield row("run", "no out", time_bursts(without, _wait, _SAMPLES))
    yield row("run alone", "out=", time_alone(with_out[0], _wait, _SAMPLES))
    yield row("first run", "out=", time_after(prepare, with_out[0], _wait, _SAMPLES))
    with framework.stream():
        prepare(0)
        yield row("run", "out=, side stream", time_bursts(with_out, _wait, _SAMPLES))


def _step_rows(batch: HostBatch, framework: Framework) -> Iterator[HostRow]:
    """What podrt adds to an eager step of an engine, in a row and between other work."""
    attention = _attention(batch)
    tensors = make_tensors(batch, framework, LAYERS)
    plan = _planner(attention, batch, tensors.block_table)
    writes, (_, runs) = _write_calls(batch, framework, tensors), _layer_calls(attention, tensors)
    layers = [call for pair in zip(writes, runs, strict=True) for call in pair]
    others = np.ones(_OTHER_BYTES, np.uint8)

    row = partial(_row, batch, framework)

    def calls_of(step: int) -> list[Call]:
        return [partial(plan, step), *layers]

    yield row("write", "keys and values", time_bursts(writes, _wait, _SAMPLES))
    for how, between in (("", bool), (", other work between calls", others.max)):
        samples_us = time_apart(calls_of, between, _wait, _STEP_SAMPLES)
        yield row("step", f"{LAYERS} layers{how}", samples_us)


def _row(
    batch: HostBatch, framework: Framework, what: What, how: str, samples_us: list[float]
) -> HostRow:
    return row_of(what, framework.name, batch.requests, f"{batch.name}, {how}", samples_us)


def _write_calls(batch: HostBatch, framework: Framework, tensors: Tensors) -> list[Call]:
    """Return for each layer what writes new keys and values of all tokens to its cache."""
    cupy = load_cupy()
    num_kv_heads = batch.heads[1]
    slots = framework.convert(cupy.arange(int(batch.q_lens.sum()), dtype=cupy.int64))
    return [  # any rows of as many heads do
        partial(write_cache, q[:, :num_kv_heads], out[:, :num_kv_heads], k_cache, v_cache, slots)
        for q, k_cache, v_cache, out in tensors.layers
    ]


def _attention(batch: HostBatch, policy: str = "auto") -> HybridAttention:
    return HybridAttention(**batch.layer_arguments, policy=policy)


def _layer_calls(attention: HybridAttention, tensors: Tensors) -> tuple[list[Call], list[Call]]:
    """Return each layer's call with `out`, and without."""
    with_out: list[Call] = [
        partial(attention.run, q, k, v, out=out) for q, k, v, out in tensors.layers
    ]
    without: list[Call] = [partial(attention.run, q, k, v) for q, k, v, _out in tensors.layers]
    return with_out, without


def _planner(
    attention: HybridAttention, batch: HostBatch, block_table: Any, **options: Any
) -> Callable[[int], object]:
    """Return a function that plans the batch as it is some steps later."""
    qo_indptr = batch.qo_indptr

    def plan(step: int) -> None:
        attention.plan(qo_indptr, batch.at_step(step), block_table=block_table, **options)

    return plan


def _plan_samples_us(
    attention: HybridAttention, batch: HostBatch, block_table: Any, **options: Any
) -> list[float]:
    qo_indptr = batch.qo_indptr
    # Prompts stay as long as they are: they have no keys before them.
    grows = bool((batch.q_lens < batch.kv_lens).all())

    def make_call(step: int) -> Call:
        kv_lens = batch.at_step(step) if grows else batch.kv_lens.copy()
        return lambda: attention.plan(qo_indptr, kv_lens, block_table=block_table, **options)

    samples = _FEW_SAMPLES if batch.requests > _MANY_REQUESTS else _SAMPLES
    return time_steps(make_call, _wait, samples)


def _plan_row(batch: HostBatch, framework: Framework) -> HostRow:
    attention = _attention(batch)
    table = framework.convert(load_cupy().asarray(batch.block_table()))
    _wait()
    samples_us = _plan_samples_us(attention, batch, table)
    return row_of("plan", framework.name, batch.requests, batch.name, samples_us)


def _reserved_plan_row(batch: HostBatch, framework: Framework) -> HostRow:
    with _reserved(batch, framework) as (attention, table, stream):
        samples_us = _plan_samples_us(attention, batch, table, stream=stream)
    return row_of("plan", framework.name, batch.requests, f"{batch.name}, reserved", samples_us)


def _growth_row(batch: HostBatch, framework: Framework) -> HostRow:
    """Steps of the same decodes, which grow by a key and are planned where they must be."""
    with _reserved(batch, framework) as (attention, table, stream):

        def make_call(step: int) -> Call:
            kv_lens = batch.at_step(step)
            have_grown = bool((kv_lens - batch.at_step(step - 1) == 1).all())

            def call() -> None:
                if not (have_grown and attention.grow(stream=stream)):
                    attention.plan(batch.qo_indptr, kv_lens, block_table=table, stream=stream)

            return call

        samples_us = time_steps(make_call, _wait, _SAMPLES)
    case = f"{batch.name}, reserved, a key more at every step"
    return row_of("grow", framework.name, batch.requests, case, samples_us)


@contextmanager
def _reserved(batch: HostBatch, framework: Framework) -> Iterator[tuple[HybridAttention, Any, Any]]:
    """Reserve an object for a batch; gives it, the batch's block table and its stream."""
    attention = _attention(batch)
    with load_cupy().cuda.Stream(non_blocking=True) as stream:
        table = framework.convert(load_cupy().asarray(batch.block_table()))
        attention.reserve(**batch.limits, stream=stream)
        _wait()
        yield attention, table, stream


def _hybrid_replay_rows(batch: HostBatch) -> Iterator[HostRow]:
    """The fused form: an ordinary launch of an object without limits, and a replay."""
    ordinary, reserved, tensors = _pair(batch)
    graph = capture_graph(_launch(reserved, tensors))
    names = ("ordinary fused launch", "fused replay")
    yield from _replay_rows(batch, names, (_launch(ordinary, tensors), graph))


def _decode_replay_rows(batch: HostBatch) -> Iterator[HostRow]:
    """Decodes alone: the decode form, launched and replayed, and the fused form's replay."""
    ordinary, reserved, tensors = _pair(batch)
    decode_graph = capture_graph(_launch(reserved, tensors, decodes_only=True))
    fused_graph = capture_graph(_launch(reserved, tensors))
    names = ("ordinary decode launch", "decode replay", "fused replay")
    launches = (_launch(ordinary, tensors), decode_graph, fused_graph)
    yield from _replay_rows(batch, names, launches)


def _pair(batch: HostBatch) -> tuple[HybridAttention, HybridAttention, Tensors]:
    """Return the batch planned by an object without limits and by one with, on one stream.

    Both are of the family that serves the layer best, which never runs one side after the other.
    """
    cupy = load_cupy()
    stream = cupy.cuda.get_current_stream()
    cupy_framework = next(each for each in frameworks() if each.name == "cupy")
    tensors = make_tensors(batch, cupy_framework, 1)
    ordinary, reserved = (_attention(batch, _fused_policy()) for _ in range(2))
    reserved.reserve(**batch.limits, stream=stream)
    for attention in (ordinary, reserved):
        attention.plan(
            batch.qo_indptr, batch.kv_lens, block_table=tensors.block_table, stream=stream
        )
    _wait()
    return ordinary, reserved, tensors


def _fused_policy() -> str:
    return "hopper" if current_device().arch.name == HOPPER_ARCH else "portable"


def _launch(attention: HybridAttention, tensors: Tensors, **options: Any) -> Call:
    q, k, v, out = tensors.layers[0]
    stream = load_cupy().cuda.get_current_stream()
    return lambda: attention.run(q, k, v, out=out, stream=stream, **options)


def _replay_rows(
    batch: HostBatch, names: tuple[str, ...], launches: tuple[Call, ...]
) -> Iterator[HostRow]:
    timings = time_all([Work(launch) for launch in launches], samples=_REPLAY_SAMPLES)
    for name, timing in zip(names, timings, strict=True):
        if isinstance(timing, Exception):
            raise timing
        case = f"{batch.name}, {int(np.median(batch.kv_lens))} keys: {name}"
        yield row_of("replay", "cupy", batch.requests, case, timing.samples_us)


def _wait() -> None:
    load_cupy().cuda.runtime.deviceSynchronize()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
