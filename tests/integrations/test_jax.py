"""JAX arrays in host memory, and the page that says how to use podrt with JAX."""

from __future__ import annotations

import numpy as np
import pytest
from readme import python_examples

import podrt

jax = pytest.importorskip("jax")
pytest.importorskip("cuda.core", reason="needs cuda.core to read JAX arrays")


@pytest.fixture(autouse=True)
def on_the_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def exact(q, names):
    """What the page's batch gives for these queries, through NumPy alone."""
    q, k, v = (np.asarray(array) for array in (q, names["k_cache"], names["v_cache"]))
    lengths = names["qo_indptr"], names["kv_lens"]
    return podrt.hybrid_attention(q, k, v, *lengths, block_table=names["block_table"])


def test_the_page_gives_what_numpy_does():
    once, layers = python_examples("docs/jax.md")
    names = {}
    exec(once, names)
    q = names["q"]
    assert isinstance(names["out"], jax.Array)
    np.testing.assert_array_equal(np.asarray(names["out"]), exact(q, names))

    exec(layers.replace("HybridAttention", "HostAttention"), names)
    for _ in range(2):
        q = jax.numpy.tanh(exact(q, names))
    assert isinstance(names["out"], jax.Array)
    np.testing.assert_allclose(
        np.asarray(names["q"], np.float32), np.asarray(q, np.float32), rtol=2**-7
    )


def test_lengths_page_table_and_lse_may_be_of_jax():
    rng = np.random.default_rng(1)
    q = rng.standard_normal((4, 8, 64)).astype(np.float16)
    k, v = rng.standard_normal((2, 3, 16, 2, 64)).astype(np.float16)
    lengths = np.array([0, 3, 4], np.int32), np.array([3, 20], np.int32)
    table = np.array([[0, 0], [2, 1]], np.int32)
    out, lse = podrt.hybrid_attention(
        *map(jax.numpy.asarray, (q, k, v, *lengths)),
        block_table=jax.numpy.asarray(table),
        return_lse=True,
    )
    expected, expected_lse = podrt.hybrid_attention(
        q, k, v, *lengths, block_table=table, return_lse=True
    )
    assert (out.dtype, lse.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(np.asarray(out), expected)
    np.testing.assert_array_equal(np.asarray(lse), expected_lse)


def test_arrays_that_are_traced_are_refused():
    cache = jax.numpy.zeros((1, 4, 2, 64), "float16")

    def attend(q):
        return podrt.hybrid_attention(q, cache, cache, [0, 1], [4])

    with pytest.raises(TypeError, match=r"q: is traced by JAX .* outside of jax\.jit"):
        jax.jit(attend)(jax.numpy.zeros((1, 8, 64), "float16"))


def test_jax_arrays_cannot_be_written():
    q, cache = jax.numpy.zeros((1, 8, 64), "float16"), jax.numpy.zeros((1, 4, 2, 64), "float16")
    with pytest.raises(ValueError, match="out: is read-only"):
        podrt.hybrid_attention(q, cache, cache, [0, 1], [4], out=q + 1)
