"""`merge_states` on the host, its reference, its kernel's source and what the kernel is given."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fake_gpu import H100, TorchTensor

import podrt
from podrt.errors import UnsupportedConfigError
from podrt.jit import build
from podrt.kernels.merge_states import (
    MOST_STATES,
    PARAMS_DTYPE,
    MergeConfig,
    ctas_of,
    source_of,
)
from podrt.reference import reference_attention
from podrt.reference.merge import reference_merge
from podrt.runtime import state_merger
from podrt.runtime.state_merger import StateMerger
from podrt.spec.batch import HybridBatch
from podrt.tensors.outputs import empty_like_caller

TOKENS, HEADS, HEAD_DIM = 5, 3, 64
BF16 = ml_dtypes.bfloat16


def states(count: int = 3, dtype: Any = np.float32, head_dim: int = HEAD_DIM) -> tuple[Any, Any]:
    """Outputs [states, tokens, heads, D] and log-sum-exps of unlike weight."""
    rng = np.random.default_rng(count)
    outs = rng.standard_normal((count, TOKENS, HEADS, head_dim)).astype(dtype)
    lses = rng.normal(scale=3, size=(count, TOKENS, HEADS)).astype(np.float32)
    return outs, lses


# The reference, and states in host memory.


def test_parts_of_the_keys_make_the_whole() -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((4, 6, 64))
    k, v = rng.standard_normal((2, 1, 40, 2, 64))

    def attend(begin: int, end: int) -> tuple[Any, Any]:
        batch = HybridBatch.contiguous(np.int32([0, 4]), np.int32([end - begin]))
        return reference_attention(q, k[:, begin:end], v[:, begin:end], batch, causal=False)

    parts = [attend(0, 7), attend(7, 7), attend(7, 30), attend(30, 40)]
    out, lse = reference_merge(*zip(*parts, strict=True))
    whole, whole_lse = attend(0, 40)
    np.testing.assert_allclose(out, whole, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, whole_lse, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=["f32", "f16", "bf16"])
def test_lists_and_stacked_tensors_are_the_same(dtype: Any) -> None:
    outs, lses = states(dtype=dtype)
    out, lse = podrt.merge_states(outs, lses)
    assert (out.dtype, lse.dtype) == (dtype, np.float32)
    exact, exact_lse = reference_merge(outs, lses)
    np.testing.assert_array_equal(out, exact.astype(dtype))
    np.testing.assert_array_equal(lse, exact_lse.astype(np.float32))
    again = podrt.merge_states(list(outs), tuple(lses))
    np.testing.assert_array_equal(again[0], out)
    np.testing.assert_array_equal(again[1], lse)


def test_one_state_is_itself() -> None:
    outs, lses = states(1)
    out, lse = podrt.merge_states(outs, lses)
    np.testing.assert_array_equal(out, outs[0])
    np.testing.assert_array_equal(lse, lses[0])


@pytest.mark.parametrize("nothing", [-np.inf, np.inf])
def test_what_has_seen_no_key_does_not_count(nothing: float) -> None:
    outs, lses = states(3)
    outs[1], lses[1] = np.nan, nothing
    out, lse = podrt.merge_states(outs, lses)
    rest = podrt.merge_states(outs[::2], lses[::2])
    np.testing.assert_array_equal(out, rest[0])
    np.testing.assert_array_equal(lse, rest[1])
    lses[...] = nothing
    out, lse = podrt.merge_states(outs, lses)
    assert not out.any() and np.isneginf(lse).all()


def test_nan_shows() -> None:
    outs, lses = states(2)
    lses[0, 1, 1] = np.nan
    outs[1, 2, 0, 5] = np.nan
    out, lse = podrt.merge_states(outs, lses)
    assert np.isnan(out[1, 1]).all() and np.isnan(lse[1, 1])
    assert np.isnan(out[2, 0, 5]) and np.isnan(out).sum() == HEAD_DIM + 1


def test_scales_do_not_matter() -> None:
    outs, lses = states(2)
    out, lse = podrt.merge_states(outs, lses)
    far, far_lse = podrt.merge_states(outs, lses + np.float32(4096))
    np.testing.assert_allclose(far, out, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(far_lse - 4096, lse, atol=1e-3)


def test_outputs_go_where_the_caller_wants_them() -> None:
    outs, lses = states(2, np.float16)
    out, lse = np.zeros(outs.shape[1:], np.float32), np.zeros(lses.shape[1:], np.float32)
    got = podrt.merge_states(outs, lses, out=out, lse=lse)
    assert got[0] is out and got[1] is lse
    wanted = podrt.merge_states(outs, lses, dtype="float32")
    np.testing.assert_array_equal(out, wanted[0])
    np.testing.assert_array_equal(lse, wanted[1])
    assert podrt.merge_states(outs, lses, dtype=BF16)[0].dtype == BF16


def test_a_state_may_be_overwritten() -> None:
    outs, lses = states(2)
    wanted = podrt.merge_states(outs, lses)
    podrt.merge_states(outs, lses, out=outs[1], lse=lses[0])
    np.testing.assert_array_equal(outs[1], wanted[0])
    np.testing.assert_array_equal(lses[0], wanted[1])


def test_other_layouts_are_axes_in_another_order() -> None:
    """FlashInfer has states behind tokens, and base 2; vLLM has heads before tokens in LSEs."""
    outs, lses = states(3)
    wanted = podrt.merge_states(outs, lses)
    of_flashinfer = outs.transpose(1, 0, 2, 3).copy(), lses.transpose(1, 0, 2) / np.log(2)
    out, _ = podrt.merge_states(
        of_flashinfer[0].transpose(1, 0, 2, 3),
        (of_flashinfer[1] * np.log(2)).astype(np.float32).transpose(1, 0, 2),
    )
    np.testing.assert_allclose(out, wanted[0], rtol=1e-5, atol=1e-6)
    of_vllm = [lse.T.copy() for lse in lses]
    out, lse = podrt.merge_states(list(outs), [each.T for each in of_vllm])
    np.testing.assert_array_equal(out, wanted[0])
    np.testing.assert_array_equal(lse, wanted[1])


def test_no_tokens_are_fine() -> None:
    outs, lses = states(2)
    out, lse = podrt.merge_states(outs[:, :0], lses[:, :0])
    assert out.shape == (0, HEADS, HEAD_DIM) and lse.shape == (0, HEADS)


def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    outs, lses = states(2)
    out, lse = podrt.merge_states(torch.from_numpy(outs), [torch.from_numpy(x) for x in lses])
    wanted = podrt.merge_states(outs, lses)
    assert isinstance(out, torch.Tensor)
    np.testing.assert_array_equal(out.numpy(), wanted[0])
    np.testing.assert_array_equal(lse.numpy(), wanted[1])


OUTS, LSES = states(2)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"outs": []}, ValueError, "outs: got no state"),
        ({"outs": OUTS[:0], "lses": LSES[:0]}, ValueError, "outs: got no state"),
        ({"outs": OUTS[0]}, ValueError, "outs: .*states, tokens.*list of"),
        ({"outs": [OUTS[0], OUTS[1, 0]]}, ValueError, r"outs\[1\]: .*3 dimensions"),
        ({"outs": [OUTS[0], OUTS[1, :4]]}, ValueError, r"outs\[1\]: got shape \(4, 3, 64\)"),
        ({"outs": [OUTS[0], OUTS[1].astype(np.float16)]}, TypeError, r"outs\[1\]: .*float32"),
        ({"outs": OUTS.astype(np.float64)}, TypeError, r"outs\[0\]: got dtype float64"),
        ({"outs": 3}, TypeError, "outs: got int"),
        ({"lses": LSES[:1]}, ValueError, "lses: got 1 states, outs have 2"),
        ({"lses": LSES.astype(np.float16)}, TypeError, r"lses\[0\]: .*float32"),
        ({"lses": LSES[:, :, :1]}, ValueError, r"lses\[0\]: got shape \(5, 1\)"),
        ({"out": np.zeros((TOKENS, HEADS, 32), np.float32)}, ValueError, "out: got shape"),
        ({"out": np.zeros(OUTS[0].shape)}, TypeError, "out: got dtype float64"),
        ({"out": np.zeros(OUTS[0].shape, np.float16), "dtype": "float32"}, TypeError, "out: .*f"),
        ({"lse": np.zeros((HEADS, TOKENS), np.float32)}, ValueError, "lse: got shape"),
        ({"lse": np.zeros(LSES[0].shape, np.float16)}, TypeError, "lse: got dtype float16"),
        ({"lse": np.broadcast_to(LSES[0, :1], LSES[0].shape)}, ValueError, "lse: is read-only"),
        ({"dtype": "float64"}, UnsupportedConfigError, "dtype='float64': allowed are"),
        ({"stream": 7}, ValueError, "stream=7"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        podrt.merge_states(**{"outs": OUTS, "lses": LSES} | changes)


# The kernel.


@pytest.mark.parametrize(
    ("arch", "head_dim", "dtype", "out_dtype"),
    [
        ("sm_80", 128, "bfloat16", "bfloat16"),
        ("sm_90a", 96, "float16", "float32"),
        ("sm_90a", 512, "float32", "bfloat16"),
        ("sm_90a", 8, "float32", "float32"),
    ],
)
def test_the_kernel_compiles_without_spills(
    arch: str, head_dim: int, dtype: str, out_dtype: str
) -> None:
    resources = build(source_of(MergeConfig(arch, head_dim, dtype, out_dtype))).resources
    assert resources.spill_store_bytes == 0
    assert resources.registers <= 48


def test_threads_of_a_row_are_of_one_warp() -> None:
    for head_dim in range(8, 600, 8):
        config = MergeConfig("sm_90a", head_dim, "float16", "float16")
        assert 32 % config.lanes == 0
        assert config.lanes >= min(head_dim // 8, 32)
        assert ctas_of(config, 1) == 1
        assert ctas_of(config, config.threads) == config.lanes


_TYPES = {"bfloat16": BF16, "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}


class KernelOnTheHost:
    """Stands for a GPU's driver: does what the kernel does, from the bytes of its argument."""

    def __init__(self, ordinal: int = 0) -> None:
        self.ordinal, self.captured, self.launches = ordinal, False, []

    def current(self) -> Any:
        return nullcontext()

    def is_capturing(self, stream: int) -> bool:
        return self.captured

    def launch(self, config: Any, grid: int, *given: int) -> None:
        threads, (stream, arguments, _) = given[2], given[-3:]
        block = ctypes.c_uint64.from_address(arguments).value
        p = np.frombuffer(ctypes.string_at(block, PARAMS_DTYPE.itemsize), PARAMS_DTYPE)[0]
        self.launches.append((config, int(p["num_states"]), stream))
        rows = int(p["num_rows"])
        assert threads == config.threads
        assert grid * threads >= rows * config.lanes > (grid - 1) * threads
        for row in range(rows):
            self._merge_row(config, p, *divmod(row, int(p["num_heads"])))

    def _merge_row(self, config: Any, p: Any, token: int, head: int) -> None:
        def place(name: str, strides: str, itemsize: int, state: Any = ...) -> int:
            steps = [int(p[f"{strides}_{axis}"][state]) for axis in ("token", "head")]
            return int(p[name][state]) + itemsize * (token * steps[0] + head * steps[1])

        count = int(p["num_states"])
        lses = np.float32([_read(place("lses", "lse_stride", 4, s), 1)[0] for s in range(count)])
        dtype, out_dtype = _TYPES[config.dtype], _TYPES[config.out_dtype]
        outs = [
            _read(place("outs", "out_stride", np.dtype(dtype).itemsize, s), config.head_dim, dtype)
            for s in range(count)
        ]
        out, lse = reference_merge([each[None, None] for each in outs], lses[:, None, None])
        to = place("out", "merged_stride", np.dtype(out_dtype).itemsize)
        _write(to, out[0, 0].astype(out_dtype))
        _write(place("lse", "merged_lse_stride", 4), lse[0].astype(np.float32))


def _read(address: int, count: int, dtype: Any = np.float32) -> Any:
    return np.frombuffer(ctypes.string_at(address, count * np.dtype(dtype).itemsize), dtype)


def _write(address: int, values: Any) -> None:
    ctypes.memmove(address, values.tobytes(), values.nbytes)


@pytest.fixture
def merger(monkeypatch: pytest.MonkeyPatch) -> Any:
    def load(config: MergeConfig, device: int) -> Any:
        return SimpleNamespace(function=config)

    def allocated(example: Any, shape: Any, dtype: str, stream: int) -> Any:
        if example.device is None:
            return empty_like_caller(example, shape, dtype, stream)
        return on_gpu(np.full(shape, np.nan, _TYPES[example.dtype if dtype == "same" else dtype]))

    monkeypatch.setattr(state_merger, "Driver", KernelOnTheHost)
    monkeypatch.setattr(state_merger, "device_info", lambda ordinal: H100)
    monkeypatch.setattr(state_merger, "load_merger", load)
    monkeypatch.setattr(state_merger, "resolve_stream", lambda stream, like=None: stream or 5)
    monkeypatch.setattr("podrt.tensors.merge_states.empty_like_caller", allocated)
    return StateMerger(0)


def on_gpu(array: Any) -> Any:
    """A tensor of PyTorch, on a GPU by its own account, over an array's memory."""
    strides = tuple(step // array.itemsize for step in array.strides)
    tensor = TorchTensor(array.shape, array.ctypes.data, f"torch.{array.dtype}", 0, strides)
    tensor.array = array
    return tensor


def merge(merger: Any, outs: Any, lses: Any, **given: Any) -> tuple[Any, Any]:
    given = {"out": None, "lse": None, "dtype": None, "stream": None} | given
    out, lse = merger.merge(outs, lses, **given)
    return out.array, lse.array


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("out_dtype", [None, "bfloat16", "float32"])
def test_launches_do_what_the_host_does(merger: Any, dtype: Any, out_dtype: str | None) -> None:
    outs, lses = states(3, dtype)
    wanted = podrt.merge_states(outs, lses, dtype=out_dtype)
    for given in ((on_gpu(outs), on_gpu(lses)), ([*map(on_gpu, outs)], [*map(on_gpu, lses)])):
        out, lse = merge(merger, *given, dtype=out_dtype)
        np.testing.assert_array_equal(out, wanted[0])
        np.testing.assert_array_equal(lse, wanted[1])


def test_launches_follow_all_strides(merger: Any) -> None:
    outs, lses = states(2)
    apart = [np.zeros((TOKENS, 2 * HEADS, HEAD_DIM + 4), np.float32)[:, ::2, :HEAD_DIM], outs[1]]
    apart[0][...] = outs[0]
    turned = [lses[0].T.copy().T, np.repeat(lses[1], 2, axis=1)[:, ::2]]
    to = np.zeros((HEADS, TOKENS, HEAD_DIM), np.float32).transpose(1, 0, 2)
    lse_to = np.zeros((HEADS, TOKENS), np.float32).T
    merge(merger, [*map(on_gpu, apart)], [*map(on_gpu, turned)], out=on_gpu(to), lse=on_gpu(lse_to))
    wanted = podrt.merge_states(outs, lses)
    np.testing.assert_array_equal(to, wanted[0])
    np.testing.assert_array_equal(lse_to, wanted[1])
    backwards = merge(merger, on_gpu(outs[::-1]), on_gpu(lses[::-1]))
    np.testing.assert_allclose(backwards[0], wanted[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [MOST_STATES, MOST_STATES + 1, 3 * MOST_STATES + 5])
def test_many_states_are_merged_in_groups(merger: Any, count: int) -> None:
    outs, lses = states(count, np.float16, head_dim=8)
    lses[: MOST_STATES + 1] = -np.inf  # a group of them without a key
    out, lse = merge(merger, on_gpu(outs), on_gpu(lses))
    exact, exact_lse = reference_merge(outs, lses)
    np.testing.assert_allclose(out.astype(float), exact, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-6)
    launched = [(config.dtype, config.out_dtype, n) for config, n, _ in merger._driver.launches]
    groups = -(-count // MOST_STATES)
    if groups == 1:
        assert launched == [("float16", "float16", count)]
    else:
        assert launched[-1] == ("float32", "float16", groups)
        assert {types[:2] for types in launched[:-1]} == {("float16", "float32")}


def test_nothing_is_launched_for_no_rows(merger: Any) -> None:
    outs, lses = states(2)
    merge(merger, on_gpu(outs[:, :0]), on_gpu(lses[:, :0]))
    assert not merger._driver.launches


def test_merges_go_to_the_stream_that_is_named(merger: Any) -> None:
    outs, lses = states(2)
    for stream in (None, 9):
        merge(merger, on_gpu(outs), on_gpu(lses), stream=stream)
    assert [stream for *_, stream in merger._driver.launches] == [5, 9]


def test_what_the_kernel_cannot_read_is_refused(merger: Any) -> None:
    outs, lses = states(2, np.float16)
    odd = np.zeros((2, TOKENS, HEADS, 144), np.float16)
    for wrong, error, words in (
        (odd[..., :60], UnsupportedConfigError, "head_dim=60"),
        (odd[..., 1:65], ValueError, r"outs\[0\]: starts at"),
        (odd[..., ::2], ValueError, r"outs\[0\]: got strides.*1 for the last"),
    ):
        with pytest.raises(error, match=words):
            merge(merger, on_gpu(wrong), on_gpu(lses))
    with pytest.raises(ValueError, match=r"lses\[0\]: lies on host memory, expected cuda:0"):
        merge(merger, on_gpu(outs), lses)
    assert not merger._driver.launches


def test_captures_of_other_frameworks_need_their_outputs(merger: Any, monkeypatch: Any) -> None:
    outs, lses = states(2)
    merger._driver.captured = True
    merge(merger, on_gpu(outs), on_gpu(lses))  # PyTorch's graphs keep their memory
    monkeypatch.setattr("podrt.runtime.checks.framework_of", lambda tensor: "cupy")
    with pytest.raises(RuntimeError, match="while the stream is being captured"):
        merge(merger, on_gpu(outs), on_gpu(lses))
    given = {"out": on_gpu(outs[0].copy()), "lse": on_gpu(lses[0].copy())}
    merge(merger, on_gpu(outs), on_gpu(lses), **given)
