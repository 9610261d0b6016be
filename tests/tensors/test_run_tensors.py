"""The tensors of one run: what is accepted, and which words refuse the rest."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from podrt.spec.attention import AttentionSpec, make_spec
from podrt.spec.batch import HybridBatch
from podrt.tensors import run_tensors
from podrt.tensors.run_tensors import RunTensors, require_kernel_can_read, view_tensors

#: Three tokens of two requests over six pages of 16 tokens, two KV heads.
BATCH = HybridBatch.from_block_table(
    np.array([0, 1, 3], np.int32),
    np.array([33, 20], np.int32),
    shape=(2, 3),
    row_stride=3,
    page_size=16,
)
CONTIGUOUS = HybridBatch.contiguous(BATCH.qo_indptr, BATCH.kv_lens)
CACHE = (6, 16, 2, 64)


def layer_of(**changes: Any) -> AttentionSpec:
    layer = make_spec(8, 2, 64, 16, "NHD", "float16", True, None)
    return dataclasses.replace(layer, **changes)


def zeros(*shape: int, dtype: Any = np.float16) -> np.ndarray:
    return np.zeros(shape, dtype)


def viewed(
    layer: AttentionSpec | None = None, batch: HybridBatch = BATCH, **changes: Any
) -> RunTensors:
    arguments = {
        "q": zeros(3, 8, 64),
        "k_cache": zeros(*CACHE),
        "v_cache": zeros(*CACHE),
        "out": None,
        "lse": None,
        "return_lse": False,
    } | changes
    return view_tensors(layer or layer_of(), batch, 0, **arguments)


def test_outputs_are_allocated_like_q() -> None:
    tensors = viewed(return_lse=True)
    assert isinstance(tensors.out_tensor, np.ndarray)
    assert (tensors.out_tensor.shape, tensors.out_tensor.dtype) == ((3, 8, 64), np.float16)
    assert (tensors.lse_tensor.shape, tensors.lse_tensor.dtype) == ((3, 8), np.float32)
    assert tensors.out.pointer == tensors.out_tensor.ctypes.data


def test_outputs_are_as_wide_as_values() -> None:
    values = zeros(6, 16, 2, 40)
    tensors = viewed(layer_of(v_head_dim=40), v_cache=values, return_lse=True)
    assert tensors.out_tensor.shape == (3, 8, 40)
    assert tensors.lse_tensor.shape == (3, 8)
    given = zeros(3, 8, 40)
    assert viewed(layer_of(v_head_dim=40), v_cache=values, out=given).out_tensor is given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "v_cache: got 2 KV heads of 64, expected num_kv_heads=2 of v_head_dim=40"),
        ({"v_cache": zeros(7, 16, 2, 40)}, "v_cache: got shape (7, 16, 2, 40), k_cache has"),
        (
            {"v_cache": zeros(6, 16, 2, 40), "out": zeros(3, 8, 64)},
            "out: got shape (3, 8, 64), expected (3, 8, 40) [total_tokens, num_qo_heads, v_head",
        ),
        ({"k_cache": zeros(6, 16, 2, 40)}, "k_cache: got 2 KV heads of 40, expected"),
    ],
)
def test_widths_that_are_not_the_layer_s_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        viewed(layer_of(v_head_dim=40), **changes)


def test_no_lse_unless_asked_for() -> None:
    tensors = viewed()
    assert tensors.lse is tensors.lse_tensor is None


def test_given_outputs_are_used() -> None:
    out, lse = zeros(3, 8, 64), zeros(3, 8, dtype=np.float32)
    tensors = viewed(out=out, lse=lse)
    assert tensors.out_tensor is out
    assert tensors.lse_tensor is lse
    assert tensors.lse is not None
    assert tensors.lse.pointer == lse.ctypes.data


def test_sinks_are_viewed_where_they_lie() -> None:
    sinks = zeros(8, 2, dtype=np.float32)[:, 1]
    found = viewed(sinks=sinks).sinks
    assert found is not None
    assert (found.pointer, found.strides) == (sinks.ctypes.data, (2,))
    assert viewed().sinks is None
    assert viewed(sinks=sinks).addresses()[5] == sinks.ctypes.data
    assert viewed().addresses()[5] == 0


def test_strides_are_honoured() -> None:
    q = zeros(8, 3, 128).transpose(1, 0, 2)[:, :, :64]
    assert viewed(q=q).q.strides == (128, 384, 1)


def test_hnd_caches_are_seen_with_tokens_before_heads() -> None:
    cache = zeros(6, 2, 16, 64)
    tensors = viewed(layer_of(kv_layout="HND"), k_cache=cache, v_cache=cache)
    assert tensors.k_cache.shape == CACHE
    assert tensors.k_cache.strides == (2048, 64, 1024, 1)
    assert tensors.k_cache.pointer == cache.ctypes.data


def test_bfloat16() -> None:
    bf16 = ml_dtypes.bfloat16
    tensors = viewed(
        layer_of(dtype="bfloat16"),
        q=zeros(3, 8, 64, dtype=bf16),
        k_cache=zeros(*CACHE, dtype=bf16),
        v_cache=zeros(*CACHE, dtype=bf16),
    )
    assert tensors.out_tensor.dtype == bf16


def test_contiguous_cache_may_be_larger_than_needed() -> None:
    cache = zeros(9, 100, 2, 64)
    tensors = viewed(layer_of(page_size=None), CONTIGUOUS, k_cache=cache, v_cache=cache)
    assert tensors.k_cache.shape == (9, 100, 2, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": zeros(3, 512)}, "q: got shape (3, 512), expected 3 dimensions [total_tokens,"),
        ({"q": zeros(4, 8, 64)}, "q: got shape (4, 8, 64), expected (3, 8, 64)"),
        ({"q": zeros(3, 4, 64)}, "q: got shape (3, 4, 64), expected (3, 8, 64)"),
        ({"k_cache": zeros(6, 16, 128)}, "k_cache: got shape (6, 16, 128), expected 4 dimensions"),
        ({"v_cache": zeros(64)}, "v_cache: got shape (64,), expected 4 dimensions"),
        ({"k_cache": zeros(6, 32, 2, 64)}, "k_cache has pages of 32 tokens"),
        ({"k_cache": zeros(6, 16, 4, 64)}, "k_cache: got 4 KV heads of 64, expected"),
        ({"v_cache": zeros(6, 16, 3, 64)}, "v_cache: got 3 KV heads of 64, expected"),
        ({"v_cache": zeros(7, 16, 2, 64)}, "v_cache: got shape (7, 16, 2, 64), k_cache has"),
        ({"out": zeros(24, 64)}, "out: got shape (24, 64), expected 3 dimensions"),
        ({"out": zeros(3, 8, 128)}, "out: got shape (3, 8, 128), expected (3, 8, 64)"),
        ({"lse": zeros(24, dtype=np.float32)}, "lse: got shape (24,), expected 2 dimensions"),
        ({"lse": zeros(8, 3, dtype=np.float32)}, "lse: got shape (8, 3), expected (3, 8)"),
        ({"sinks": zeros(2, dtype=np.float32)}, "sinks: got shape (2,), expected (8,), one per"),
        ({"sinks": zeros(8, 1, dtype=np.float32)}, "sinks: got shape (8, 1), expected 1 dim"),
        ({"out": np.broadcast_to(zeros(64), (3, 8, 64))}, "out: is read-only"),
        (
            {"lse": np.broadcast_to(zeros(8, dtype=np.float32), (3, 8))},
            "lse: is read-only",
        ),
    ],
)
def test_wrong_shape_names_the_argument(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        viewed(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": zeros(3, 8, 64, dtype=np.float32)}, "q: got dtype float32, expected float16"),
        ({"k_cache": zeros(*CACHE, dtype=np.int16)}, "k_cache: got dtype int16"),
        ({"v_cache": zeros(*CACHE, dtype=ml_dtypes.bfloat16)}, "v_cache: got dtype bfloat16"),
        ({"out": zeros(3, 8, 64, dtype=np.float32)}, "out: got dtype float32, expected float16"),
        ({"lse": zeros(3, 8)}, "lse: got dtype float16, expected float32"),
        ({"sinks": zeros(8)}, "sinks: got dtype float16, expected float32"),
        ({"q": [[[0.0]]]}, "q: got list, expected a NumPy, CuPy"),
        ({"v_cache": None}, "v_cache: got NoneType"),
        ({"out": "out"}, "out: got str"),
    ],
)
def test_wrong_type_names_the_argument(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        viewed(**changes)


def test_hnd_errors_name_the_layout() -> None:
    with pytest.raises(ValueError, match=re.escape("[pages, num_kv_heads, page_size, head_dim]")):
        viewed(layer_of(kv_layout="HND"), k_cache=zeros(6, 16, 128))
    transposed = {"k_cache": zeros(6, 16, 16, 64), "v_cache": zeros(6, 16, 16, 64)}
    with pytest.raises(ValueError, match="kv_layout is 'HND'"):
        viewed(layer_of(kv_layout="HND"), **transposed)


@pytest.mark.parametrize("shape", [(1, 33, 2, 64), (2, 32, 2, 64)])
def test_contiguous_cache_must_hold_the_lengths(shape: tuple[int, ...]) -> None:
    caches = {"k_cache": zeros(*shape), "v_cache": zeros(*shape)}
    with pytest.raises(ValueError, match=r"k_cache has .* at least 2 rows of 33"):
        viewed(layer_of(page_size=None), CONTIGUOUS, **caches)


def on_device(monkeypatch: pytest.MonkeyPatch, devices: dict[str, int]) -> None:
    """Let tensors called so lie on these GPUs."""
    real = run_tensors.view
    monkeypatch.setattr(
        run_tensors,
        "view",
        lambda tensor, name, stream=0: dataclasses.replace(
            real(tensor, name, stream), device=devices.get(name)
        ),
    )


@pytest.mark.parametrize("stray", ["k_cache", "v_cache", "out", "lse", "sinks"])
def test_tensors_must_lie_together(monkeypatch: pytest.MonkeyPatch, stray: str) -> None:
    names = ["q", "k_cache", "v_cache", "out", "lse", "sinks"]
    on_device(monkeypatch, dict.fromkeys(names, 0) | {stray: 1})
    others = {"lse": zeros(3, 8, dtype=np.float32), "sinks": zeros(8, dtype=np.float32)}
    message = f"{stray}: lies on cuda:1, expected cuda:0 as for q"
    with pytest.raises(ValueError, match=re.escape(message)):
        viewed(out=zeros(3, 8, 64), **others)


def test_host_and_gpu_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    on_device(monkeypatch, {"q": 0})
    with pytest.raises(ValueError, match="k_cache: lies on host memory, expected cuda:0"):
        viewed()


def on_gpu(tensors: RunTensors, **changes: dict[str, Any]) -> RunTensors:
    """The tensors as they look on a GPU, 16-byte aligned; `changes` are fields of their views."""
    views = {
        name: dataclasses.replace(
            getattr(tensors, name), **({"device": 0, "pointer": 1024} | changes.get(name, {}))
        )
        for name in ("q", "k_cache", "v_cache", "out", "lse")
    }
    return dataclasses.replace(tensors, **views)


def test_kernel_reads_aligned_tensors_of_its_device() -> None:
    require_kernel_can_read(on_gpu(viewed(return_lse=True)), 0)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("q", (64, 306783376, 1)),
        ("k_cache", (64, 64, 2**31 - 8, 1)),
        ("lse", (2**31 - 1, 306783378)),
    ],
)
def test_last_head_may_be_as_far_as_32_bits_reach(name: str, strides: tuple[int, ...]) -> None:
    tensors = on_gpu(viewed(return_lse=True), **{name: {"strides": strides}})
    require_kernel_can_read(tensors, 0)


def test_host_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="q: lies in host memory, expected a tensor on a CUDA GPU"):
        require_kernel_can_read(viewed(), 0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("q", {"device": 1}, "q: lies on cuda:1, expected cuda:0, the device of this object"),
        (
            "q",
            {"strides": (1024, 128, 2)},
            "q: got strides (1024, 128, 2) (in elements), expected 1",
        ),
        (
            "v_cache",
            {"pointer": 1032},
            "v_cache: starts at address 0x408, expected a multiple of 16",
        ),
        ("k_cache", {"strides": (2048, 68, 64, 1)}, "k_cache: got strides (2048, 68, 64, 1)"),
        ("out", {"strides": (516, 64, 1)}, "out: got strides (516, 64, 1)"),
        ("k_cache", {"strides": (2**31, 128, 64, 1)}, "expected at most 2147483647 each"),
        ("lse", {"strides": (2**31, 1)}, "lse: got strides (2147483648, 1)"),
        (
            "q",
            {"strides": (64, 2**29, 1)},
            "q: got 8 heads 536870912 elements apart, expected the last at most 2147483647",
        ),
        ("out", {"strides": (64, -(2**29), 1)}, "out: got 8 heads -536870912 elements apart"),
        (
            "v_cache",
            {"shape": (6, 16, 4, 64), "strides": (64, 64, 2**30, 1)},
            "v_cache: got 4 heads",
        ),
        ("lse", {"strides": (1, 2**29)}, "lse: got 8 heads 536870912 elements apart"),
    ],
)
def test_what_the_kernel_cannot_read_is_refused(
    name: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        require_kernel_can_read(on_gpu(viewed(return_lse=True), **{name: fields}), 0)
