"""Names of GPUs and what is said of peers."""

from __future__ import annotations

import pytest

from podrt.bench.environment import gpu_slug
from podrt.bench.peers import error_text, parse_peers


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("", "gpu"),
    ],
)
def test_slug(name, slug):
    assert gpu_slug(name) == slug


def test_peers_option():
    assert parse_peers("none") == []
    assert parse_peers("flashinfer,fa3") == ["flashinfer", "fa3"]
    with pytest.raises(ValueError, match="fa3,flashinfer"):
        parse_peers("fa2")


def test_errors_are_one_short_line():
    text = error_text(ValueError("one\ntwo " + "x" * 500))
    assert text.startswith("ValueError: one two xxx")
    assert len(text) == 300
