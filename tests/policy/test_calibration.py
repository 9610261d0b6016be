"""Measured constants say where they come from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from podrt.policy.calibration import H100, H200
from podrt.policy.constants import Calibration, Measured

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("gpu", [H100, H200], ids=["h100", "h200"])
@pytest.mark.parametrize("part", [field.name for field in fields(Calibration)])
def test_every_part_names_a_gpu_and_a_document_that_there_is(part: str, gpu: Calibration) -> None:
    measured = getattr(gpu, part)
    assert isinstance(measured, Measured)
    assert measured.gpu.startswith("NVIDIA ")
    documents = [word.strip(",") for word in measured.source.split() if ".md" in word]
    assert documents
    assert all((ROOT / document).is_file() for document in documents)
