"""Measured constants say where they come from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from podrt.policy.calibration import H200, Measured

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("part", [field.name for field in fields(H200)])
def test_every_part_names_a_gpu_and_a_document_that_there_is(part: str) -> None:
    measured = getattr(H200, part)
    assert isinstance(measured, Measured)
    assert measured.gpu.startswith("NVIDIA ")
    documents = [word.strip(",") for word in measured.source.split() if ".md" in word]
    assert documents
    assert all((ROOT / document).is_file() for document in documents)
