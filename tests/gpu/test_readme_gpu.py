"""The examples of the README and the tutorial run as they stand."""

from __future__ import annotations

import pytest
from readme import python_examples


def test_python_examples_run():
    cupy = pytest.importorskip("cupy")
    names: dict[str, object] = {}
    outputs = 0
    for example in python_examples():
        exec(compile(example, "README.md", "exec"), names)
        if "out" in names:  # the example ran attention
            out = names.pop("out")
            assert out.shape == (258, 32, 128)
            # All values of the cache are the same, so every weighted mean is that value.
            cupy.testing.assert_allclose(out.astype("float32"), 0.5, rtol=1e-3)
            outputs += 1
    assert outputs >= 2  # eager and replayed


@pytest.mark.usefixtures("much_memory")
def test_python_examples_of_the_tutorial_run(capsys):
    """Making its large batch takes 9 GB."""
    pytest.importorskip("cupy")
    names: dict[str, object] = {}
    for example in python_examples("docs/tutorial.md"):
        exec(compile(example, "docs/tutorial.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count(" ms\n") == 3  # a line for each policy
