"""`write_cache` on the host, its kernel's source and arguments, and the short way to a launch."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fake_gpu import H100, TorchTensor

import podrt
from podrt.errors import UnsupportedConfigError
from podrt.jit import build
from podrt.kernels.cache_write import (
    PARAMS_DTYPE,
    THREADS,
    CacheWriteConfig,
    ctas_of,
    source_of,
)
from podrt.runtime import cache_writer
from podrt.runtime.cache_writer import CacheWriter

PAGES, PAGE_SIZE, HEADS, HEAD_DIM = 5, 16, 2, 64
SLOTS = np.array([3, -1, 79, 16, 80, 33], np.int64)  # 80 is the first that there is not


def random(*shape: int, dtype: Any = np.float16) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def new_tokens(count: int = 8, dtype: Any = np.float16) -> tuple[Any, Any]:
    """Keys and values that lie as the parts of one projection do."""
    both = random(count, 2 * HEADS + 3, HEAD_DIM, dtype=dtype)
    return both[:, :HEADS], both[:, HEADS : 2 * HEADS]


def caches(layout: str, dtype: Any = np.float16) -> tuple[Any, Any]:
    """Keys and values as they may lie in memory, with axes in the order of "NHD"."""
    if layout == "apart":
        k, v = (np.zeros((PAGES, PAGE_SIZE, HEADS, HEAD_DIM), dtype) for _ in range(2))
        return k, v
    shape = {
        "vllm NHD": (PAGES, PAGE_SIZE, HEADS, 2 * HEAD_DIM),
        "vllm HND": (PAGES, HEADS, PAGE_SIZE, 2 * HEAD_DIM),
    }[layout]
    both = np.zeros(shape, dtype)
    both = both if layout == "vllm NHD" else both.transpose(0, 2, 1, 3)
    return both[..., :HEAD_DIM], both[..., HEAD_DIM:]


def expected(new: Any, cache: Any, slots: Any) -> Any:
    """The cache after the write, one element after the other."""
    wanted = cache.copy()
    for token, slot in enumerate(slots.tolist()):
        if 0 <= slot < PAGES * PAGE_SIZE:
            wanted[slot // PAGE_SIZE, slot % PAGE_SIZE] = new[token]
    return wanted


LAYOUTS = pytest.mark.parametrize("layout", ["apart", "vllm NHD", "vllm HND"])


# On the host.


@LAYOUTS
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
def test_tokens_go_to_their_slots_and_nothing_else_changes(layout: str, dtype: Any) -> None:
    (k, v), (k_cache, v_cache) = new_tokens(dtype=dtype), caches(layout, dtype)
    wanted = expected(k, k_cache, SLOTS), expected(v, v_cache, SLOTS)
    podrt.write_cache(k, v, k_cache, v_cache, SLOTS)
    np.testing.assert_array_equal(k_cache, wanted[0])
    np.testing.assert_array_equal(v_cache, wanted[1])


def test_caches_may_have_heads_before_tokens() -> None:
    (k, v), (k_cache, v_cache) = new_tokens(), caches("apart")
    wanted = expected(k, k_cache, SLOTS)
    as_hnd = [cache.transpose(0, 2, 1, 3) for cache in (k_cache, v_cache)]
    podrt.write_cache(k, v, *as_hnd, SLOTS, kv_layout="HND")
    np.testing.assert_array_equal(k_cache, wanted)


@pytest.mark.parametrize("value_dim", [40, 72])
def test_values_may_have_a_width_of_their_own(writer: Any, value_dim: int) -> None:
    """On the host and in a launch, the long way and then the short one."""
    k, v = random(8, HEADS, HEAD_DIM), random(8, HEADS, value_dim)
    for write_it in (podrt.write_cache, *[lambda *given: write(writer, *given)] * 2):
        k_cache = np.zeros((PAGES, PAGE_SIZE, HEADS, HEAD_DIM), np.float16)
        v_cache = np.zeros((PAGES, PAGE_SIZE, HEADS, value_dim), np.float16)
        wanted = expected(k, k_cache, SLOTS), expected(v, v_cache, SLOTS)
        write_it(k, v, k_cache, v_cache, SLOTS)
        np.testing.assert_array_equal(k_cache, wanted[0])
        np.testing.assert_array_equal(v_cache, wanted[1])
    assert writer.loads == 1
    with pytest.raises(ValueError, match=f"v: got 2 KV heads of 64, .* {value_dim} as in v_cache"):
        podrt.write_cache(k, k, k_cache, v_cache, SLOTS)


def test_no_tokens_are_fine() -> None:
    (k, v), (k_cache, v_cache) = new_tokens(), caches("apart")
    podrt.write_cache(k, v, k_cache, v_cache, SLOTS[:0])
    assert not k_cache.any()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"slot_mapping": SLOTS.astype(np.int32)}, TypeError, "slot_mapping.*int64"),
        ({"slot_mapping": SLOTS[None]}, ValueError, "slot_mapping.*dimensions"),
        ({"slot_mapping": np.zeros(9, np.int64)}, ValueError, "k: has 8 tokens.*9"),
        ({"k": random(8, HEADS + 1, HEAD_DIM)}, ValueError, "k: got 3 KV heads"),
        ({"v": random(8, HEADS, HEAD_DIM, dtype=ml_dtypes.bfloat16)}, TypeError, "v: .*float16"),
        ({"v_cache": random(4, PAGE_SIZE, HEADS, HEAD_DIM)}, ValueError, "v_cache: got shape"),
        ({"k_cache": random(PAGES, PAGE_SIZE, HEADS)}, ValueError, "k_cache: .*page_size"),
        ({"kv_layout": "DNH"}, UnsupportedConfigError, "kv_layout='DNH'"),
        ({"stream": 7}, ValueError, "stream=7"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: Any, error: Any, words: str) -> None:
    (k, v), (k_cache, v_cache) = new_tokens(), caches("apart")
    given = {"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "slot_mapping": SLOTS}
    with pytest.raises(error, match=words):
        podrt.write_cache(**given | changes)
    assert not k_cache.any() and not v_cache.any()


def test_head_sizes_without_a_kernel_are_refused() -> None:
    k, cache = random(8, HEADS, 100), random(PAGES, PAGE_SIZE, HEADS, 100)
    with pytest.raises(UnsupportedConfigError, match="head_dim=100"):
        podrt.write_cache(k, k, cache, cache, SLOTS)


# The kernel.


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    ("head_dim", "v_head_dim"), [*((d, None) for d in (40, 64, 96, 128, 192, 256)), (192, 128)]
)
def test_the_kernel_compiles_without_spills(
    arch: str, head_dim: int, v_head_dim: int | None
) -> None:
    config = CacheWriteConfig(arch, head_dim, PAGE_SIZE, v_head_dim)
    resources = build(source_of(config)).resources
    assert resources.spill_store_bytes == 0
    assert resources.registers <= 32


class KernelOnTheHost:
    """Stands for a GPU's driver: does what the kernel does, from the bytes of its arguments."""

    def __init__(self, ordinal: int = 0) -> None:
        self.ordinal, self.is_context_current, self.streams = ordinal, True, []

    def is_current(self) -> bool:
        return self.is_context_current

    def current(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def launch(self, function: Any, grid: int, *given: int) -> None:
        threads, (stream, arguments, _) = given[2], given[-3:]
        self.streams.append(stream)
        config = function
        block = ctypes.c_uint64.from_address(arguments).value
        p = np.frombuffer(ctypes.string_at(block, PARAMS_DTYPE.itemsize), PARAMS_DTYPE)[0]
        p = {name: int(p[name]) for name in PARAMS_DTYPE.names}
        vectors = {"k": config.head_dim // 8, "v": config.value_dim // 8}
        of_keys, of_token = (p["num_kv_heads"] * n for n in (vectors["k"], sum(vectors.values())))
        assert threads == config.threads
        for index in range(grid * threads):
            token, place = divmod(index, of_token)
            if token >= p["num_tokens"]:
                continue
            slot = ctypes.c_int64.from_address(p["slots"] + 8 * token).value
            if not 0 <= slot < p["num_slots"]:
                continue
            name, at = ("v", place - of_keys) if place >= of_keys else ("k", place)
            head, vector = divmod(at, vectors[name])
            page, in_page = divmod(slot, config.page_size)
            source = token * p[f"{name}_stride_token"] + head * p[f"{name}_stride_head"]
            target = (
                page * p[f"{name}_cache_stride_page"]
                + in_page * p[f"{name}_cache_stride_token"]
                + head * p[f"{name}_cache_stride_head"]
            )
            ctypes.memmove(
                p[f"{name}_cache"] + 2 * (target + 8 * vector),
                p[name] + 2 * (source + 8 * vector),
                16,
            )


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> CacheWriter:
    def load(config: CacheWriteConfig, device: int) -> Any:
        writer.loads += 1
        return SimpleNamespace(function=config)

    monkeypatch.setattr(cache_writer, "Driver", KernelOnTheHost)
    monkeypatch.setattr(cache_writer, "device_info", lambda ordinal: H100)
    monkeypatch.setattr(cache_writer, "load_writer", load)
    monkeypatch.setattr(cache_writer, "current_stream_getter", lambda framework: lambda device: 5)
    monkeypatch.setattr(cache_writer, "resolve_stream", lambda stream, like=None: stream or 5)
    writer: Any = CacheWriter(0)
    writer.loads = 0
    return writer  # type: ignore[no-any-return]


def on_gpu(array: Any, dtype: str = "torch.float16") -> Any:
    """A tensor of PyTorch, on a GPU by its own account, over an array's memory."""
    strides = tuple(step // array.itemsize for step in array.strides)
    return TorchTensor(array.shape, array.ctypes.data, dtype, 0, strides)


def write(writer: CacheWriter, k: Any, v: Any, k_cache: Any, v_cache: Any, slots: Any) -> None:
    tensors = [on_gpu(array) for array in (k, v, k_cache, v_cache)]
    writer.write(*tensors, on_gpu(slots, "torch.int64"), "NHD", None)


@LAYOUTS
def test_launches_do_what_the_host_does(writer: Any, layout: str) -> None:
    for count in (6, 1, 5, 6):  # after the first one, the short way
        k, v = new_tokens(count)
        k_cache, v_cache = caches(layout)
        slots = SLOTS[:count].copy()
        wanted = expected(k, k_cache, slots), expected(v, v_cache, slots)
        write(writer, k, v, k_cache, v_cache, slots)
        np.testing.assert_array_equal(k_cache, wanted[0])
        np.testing.assert_array_equal(v_cache, wanted[1])
    assert writer.loads == 1


def test_a_single_token_does_not_decide_how_more_of_them_lie(writer: Any) -> None:
    for count in (1, 6):
        k, v = new_tokens(8)
        k, v = (x[::2][:count] if count == 1 else x[:count] for x in (k, v))
        k_cache, v_cache = caches("apart")
        wanted = expected(k, k_cache, SLOTS[:count])
        write(writer, k, v, k_cache, v_cache, SLOTS[:count].copy())
        np.testing.assert_array_equal(k_cache, wanted)


def test_tensors_that_lie_otherwise_go_the_long_way(writer: Any) -> None:
    k, v = new_tokens(6)
    for layout in ("apart", "vllm NHD", "apart", "vllm NHD"):
        k_cache, v_cache = caches(layout)
        wanted = expected(v, v_cache, SLOTS)
        write(writer, k, v, k_cache, v_cache, SLOTS)
        np.testing.assert_array_equal(v_cache, wanted)
    assert writer.loads == 2  # one for each layout


def test_more_slots_than_tokens_are_refused_the_short_way_too(writer: Any) -> None:
    k_cache, v_cache = caches("apart")
    write(writer, *new_tokens(6), k_cache, v_cache, SLOTS)
    with pytest.raises(ValueError, match="k: has 5 tokens"):
        write(writer, *new_tokens(5), k_cache, v_cache, SLOTS)


def test_slots_of_another_type_are_refused_the_short_way_too(writer: Any) -> None:
    (k, v), (k_cache, v_cache) = new_tokens(6), caches("apart")
    write(writer, k, v, k_cache, v_cache, SLOTS)
    tensors = [on_gpu(array) for array in (k, v, k_cache, v_cache)]
    with pytest.raises(TypeError, match="slot_mapping"):
        writer.write(*tensors, on_gpu(SLOTS, "torch.int32"), "NHD", None)


def test_writes_go_to_the_stream_that_is_named(writer: Any) -> None:
    (k, v), (k_cache, v_cache) = new_tokens(6), caches("apart")
    tensors = [on_gpu(array) for array in (k, v, k_cache, v_cache)]
    slots = on_gpu(SLOTS, "torch.int64")
    for stream in (None, 9, None, 11):
        writer.write(*tensors, slots, "NHD", stream)
    assert writer._driver.streams == [5, 9, 5, 11]


def test_the_grid_has_a_thread_for_each_vector() -> None:
    assert ctas_of(1, 8, 128 + 128) == 1
    assert ctas_of(2048, 8, 192 + 128) * THREADS == 2048 * 8 * (192 + 128) // 8
    assert ctas_of(3, 1, 64 + 64) == 1
