import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from podrt.tensors.outputs import empty_like_caller, finish
from podrt.tensors.view import TensorView, view


@pytest.mark.parametrize(
    ("dtype", "expected"), [("same", ml_dtypes.bfloat16), ("float32", np.float32)]
)
def test_numpy_in_numpy_out(dtype, expected):
    output = empty_like_caller(view(np.zeros(2, ml_dtypes.bfloat16), "q"), (3, 4), dtype)
    assert type(output) is np.ndarray
    assert (output.shape, output.dtype) == ((3, 4), expected)
    assert output.flags.c_contiguous


@pytest.mark.parametrize("framework", ["numpy", "torch", "cupy", "other"])
def test_finish_leaves_all_but_jax_alone(framework):
    example = TensorView("q", 0, (), (), "float16", 0, True, framework, None)
    output = object()
    assert finish(output, example) is output


def test_jax_on_the_host_gets_a_jax_array(monkeypatch):
    cpu = object()
    jax = SimpleNamespace(
        devices=lambda kind: {"cpu": [cpu]}[kind], device_put=lambda array, device: (array, device)
    )
    monkeypatch.setitem(sys.modules, "jax", jax)
    example = TensorView("q", 0, (2,), (1,), "bfloat16", None, False, "jax", None)
    output = empty_like_caller(example, (2,))
    assert output.dtype == ml_dtypes.bfloat16
    assert finish(output, example) == (output, cpu)
