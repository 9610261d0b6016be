"""The README's example runs as it stands."""

from __future__ import annotations

import pytest
from readme import python_example


def test_python_example_runs():
    cupy = pytest.importorskip("cupy")
    names: dict[str, object] = {}
    exec(compile(python_example(), "README.md", "exec"), names)
    out = names["out"]
    assert out.shape == (258, 32, 128)
    # All values of the cache are the same, so every weighted mean is that value.
    cupy.testing.assert_allclose(out.astype("float32"), 0.5, rtol=1e-3)
