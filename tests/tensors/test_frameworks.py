import numpy as np
import pytest

from podrt.tensors.frameworks import framework_of


def test_numpy_and_its_subclasses():
    class Mine(np.ndarray):
        pass

    assert framework_of(np.zeros(1)) == "numpy"
    assert framework_of(np.zeros(1).view(Mine)) == "numpy"


@pytest.mark.parametrize(
    ("module", "type_name", "framework"),
    [
        ("cupy", "ndarray", "cupy"),
        ("torch", "Tensor", "torch"),
        ("jaxlib._jax", "ArrayImpl", "jax"),
        ("torch", "Generator", "other"),
        ("cupyx", "ndarray", "other"),
    ],
)
def test_told_by_module_and_name(module, type_name, framework):
    kind = type(type_name, (), {"__module__": module})
    subclass = type("Parameter", (kind,), {"__module__": "somewhere.else"})
    assert framework_of(kind()) == framework
    assert framework_of(subclass()) == framework


@pytest.mark.parametrize("value", [None, 3, [1, 2], "q"])
def test_anything_else_is_other(value):
    assert framework_of(value) == "other"
