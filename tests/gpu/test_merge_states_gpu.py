"""`merge_states` on a GPU."""

import ml_dtypes
import numpy as np
import pytest
from attention_case import Case, poisoned, to_gpu
from gpu_support import from_torch, inputs_on_gpu, to_torch

import podrt
from podrt.kernels.merge_states import MOST_STATES
from podrt.reference.merge import reference_merge

cupy = pytest.importorskip("cupy")

TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
#: Half a unit in the last place, relative to the value; and what sums in float32 are off by.
HALF_UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 0.0}
FLOAT32_ERROR = 2.0**-19
TOKENS, HEADS = 37, 5


def states(count, dtype, head_dim=128):
    """Outputs and log-sum-exps of unlike weight on the host; a tenth have seen no key."""
    rng = np.random.default_rng(head_dim + count)
    outs = rng.standard_normal((count, TOKENS, HEADS, head_dim)).astype(np.float32)
    lses = rng.normal(scale=4, size=(count, TOKENS, HEADS)).astype(np.float32)
    unseen = rng.random(lses.shape) < 0.1
    outs[unseen], lses[unseen] = np.nan, np.where(rng.random(unseen.sum()) < 0.5, np.inf, -np.inf)
    outs[:, 3], lses[:, 3] = np.nan, -np.inf
    return outs.astype(TYPES[dtype]), lses


def on_gpu(array):
    return cupy.asarray(array) if array.dtype == np.float32 else to_gpu(array)


def require_rounded(out, exact, dtype):
    error = np.abs(out.astype(np.float64) - exact)
    allowed = HALF_UNIT[dtype] * np.abs(exact) + FLOAT32_ERROR * (1 + np.abs(exact))
    assert (error <= allowed).all(), (error / allowed).max()


def check(got, outs, lses, dtype):
    out, lse = (array.get() for array in got)
    exact, exact_lse = reference_merge(outs, lses)
    assert out.dtype == TYPES[dtype]
    require_rounded(out, exact, dtype)
    assert (out[3] == 0).all() and np.isneginf(lse[3]).all()
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "float16"),
        ("float32", "bfloat16"),
        ("float32", "float16"),
        ("float32", "float32"),
    ],
)
@pytest.mark.parametrize("head_dim", [64, 96, 512])
def test_stacked_states_and_lists(head_dim, dtype, out_dtype):
    for count in (1, 2, 3, 9):
        outs, lses = states(count, dtype, head_dim)
        given = on_gpu(outs), on_gpu(lses)
        out, lse = podrt.merge_states(*given, dtype=out_dtype)
        check((out, lse), outs, lses, out_dtype)
        again = podrt.merge_states(list(given[0]), list(given[1]), dtype=out_dtype)
        assert again[0].tobytes() == out.tobytes() and again[1].tobytes() == lse.tobytes()
        some = podrt.merge_states(given[0][:, 7:19], given[1][:, 7:19], dtype=out_dtype)
        assert some[0].tobytes() == out[7:19].tobytes()  # whatever the other rows are
        assert some[1].tobytes() == lse[7:19].tobytes()
        if count == 1:
            seen = np.isfinite(lses[0])
            np.testing.assert_array_equal(lse.get()[seen], lses[0][seen])
            if dtype == out_dtype:
                np.testing.assert_array_equal(out.get()[seen], outs[0][seen])


@pytest.mark.parametrize("count", [MOST_STATES, MOST_STATES + 1, 3 * MOST_STATES + 2])
def test_many_states(count):
    outs, lses = states(count, "float16", 64)
    check(podrt.merge_states(on_gpu(outs), on_gpu(lses)), outs, lses, "float16")


def test_strides_and_outputs_of_the_caller():
    outs, lses = states(2, "float16", 64)
    wide = poisoned((TOKENS, 2 * HEADS, 72), np.float16)
    wide[:, ::2, :64] = on_gpu(outs[0])
    turned = cupy.asarray(lses[1].T.copy()).T
    out = poisoned((HEADS, TOKENS, 64), np.float16).transpose(1, 0, 2)
    lse = poisoned((HEADS, TOKENS), np.float32).T
    got = podrt.merge_states(
        [wide[:, ::2, :64], on_gpu(outs[1])], [on_gpu(lses[0]), turned], out=out, lse=lse
    )
    assert got[0] is out and got[1] is lse
    check(got, outs, lses, "float16")
    before = wide.copy()
    before[:, ::2, :64] = out
    podrt.merge_states(
        [wide[:, ::2, :64], on_gpu(outs[1])],
        [on_gpu(lses[0]), turned],
        out=wide[:, ::2, :64],
        lse=turned,
    )
    assert wide.tobytes() == before.tobytes()  # in place, and nothing beside it
    assert turned.tobytes() == lse.tobytes()


@pytest.mark.parametrize("head_dim", [64, 512])
def test_states_may_be_overwritten(head_dim):
    """Of many rows, so that a warp that writes before others have read would show."""
    rng = np.random.default_rng(5)
    outs = on_gpu(rng.standard_normal((3, 1000, 8, head_dim)).astype(np.float32))
    lses = on_gpu(rng.standard_normal((3, 1000, 8)).astype(np.float32))
    out, lse = podrt.merge_states(outs, lses)
    for state in range(3):
        mine, mine_lse = outs.copy(), lses.copy()
        podrt.merge_states(mine, mine_lse, out=mine[state], lse=mine_lse[state])
        assert (mine[state] == out).all() and (mine_lse[state] == lse).all()


@pytest.mark.parametrize("policy", ["auto", "portable"])
def test_parts_of_the_keys_make_the_whole(policy):
    """Attention over the first pages, and over the others, merged: what it is over all."""
    case = Case([1, 9, 1], [300, 209, 64], causal=False, seed=2)
    attention = podrt.HybridAttention(**case.layer_arguments, policy=policy)
    tensors = inputs_on_gpu(case)
    parts = []
    for begin, end in ((0, 4), (4, 4), (4, case.block_table.shape[1])):
        rest = np.clip(np.array(case.kv_lens) - begin * 16, 0, (end - begin) * 16)
        table = case.block_table[:, begin : max(end, begin + 1)].copy()
        attention.plan(case.qo_indptr, rest.astype(np.int32), block_table=table)
        parts.append(attention.run(*tensors, return_lse=True))
    out, lse = podrt.merge_states(*zip(*parts, strict=True))
    case.check(out.get(), lse.get(), allowed_steps=4)  # parts are rounded too


def test_a_captured_merge_reads_its_states_at_every_replay():
    torch = pytest.importorskip("torch")
    outs, lses = states(MOST_STATES + 1, "bfloat16", 64)
    given = to_torch(outs), torch.from_numpy(lses).cuda()
    podrt.merge_states(*given)  # compiled and loaded
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = podrt.merge_states(*given)
    for scale in (1, 2):
        given[0].mul_(scale)
        graph.replay()
        torch.cuda.synchronize()
        exact, exact_lse = reference_merge(outs.astype(np.float64) * scale, lses)
        require_rounded(from_torch(out, TYPES["bfloat16"]), exact, "bfloat16")
        np.testing.assert_allclose(lse.cpu().numpy(), exact_lse, rtol=1e-6, atol=4e-6)


def test_arrays_of_jax():
    jax = pytest.importorskip("jax")
    try:
        jax.devices("gpu")
    except RuntimeError:
        pytest.skip("JAX has no GPU")
    outs, lses = states(2, "float32")
    out, lse = podrt.merge_states(jax.numpy.asarray(outs), jax.numpy.asarray(lses))
    assert isinstance(out, jax.Array)
    exact, exact_lse = reference_merge(outs, lses)
    np.testing.assert_allclose(np.asarray(out), exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(lse), exact_lse, rtol=1e-5, atol=1e-5)
