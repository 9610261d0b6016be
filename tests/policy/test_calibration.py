"""Measured constants say where they come from."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from podrt.gpu import nominal
from podrt.policy.calibration import H100, H200, shipped_for
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


def test_measured_gpus_have_their_own_constants_as_they_are() -> None:
    assert shipped_for(nominal.H100) is H100
    assert shipped_for(nominal.H200) is H200


@pytest.mark.parametrize(("num_sms", "memory_gbs"), [(114, 2039.0), (132, 4023.0), (64, 3352.0)])
def test_a_gpu_without_a_record_reads_no_faster_than_its_memory(
    num_sms: int, memory_gbs: float
) -> None:
    found = shipped_for(replace(nominal.H100, num_sms=num_sms, memory_gbs=memory_gbs))
    for read_gbs in found.launch_costs.read_gbs:
        assert 0.8 * memory_gbs < read_gbs < memory_gbs
    assert found.launch_costs.unit_us in (H100.launch_costs.unit_us, H200.launch_costs.unit_us)
