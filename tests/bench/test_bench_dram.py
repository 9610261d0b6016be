"""DRAM bytes: what is launched, and how ncu's log is read."""

from __future__ import annotations

import pytest

from podrt.bench.case import Case
from podrt.bench.dram import contenders_of, measure_dram, rows_of
from podrt.errors import DeviceError

HYBRID = Case("a", 8, 2, 128, "bfloat16", 16, ((64, 256),), (512, 512))
ALONE = Case("b", 8, 2, 128, "bfloat16", 16, (), (512,))

LOG = """==PROF== Connected to process 7
"ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum"
"","","byte","byte"
"0","pod","1,500,000","2000"
"1","prefill","1000000.00","100"
"2","decode","400000","50"
"""
LAUNCHES = [
    {"case": "a", "contender": "auto", "variants": ["pod"]},
    {"case": "a", "contender": "serial", "variants": ["prefill", "decode"]},
]


def test_launches_of_a_contender_add_up() -> None:
    fused, serial = rows_of([HYBRID], LAUNCHES, LOG)
    assert (fused.read_bytes, fused.written_bytes) == (1_500_000, 2_000)
    assert (serial.read_bytes, serial.written_bytes) == (1_400_000, 150)
    # q and out: 66 tokens of 8 heads; keys and values: 1280 of 2 heads; 256 bytes each
    assert fused.min_bytes == serial.min_bytes == 256 * (2 * 66 * 8 + 2 * 1280 * 2)
    assert fused.ratio == 1_502_000 / fused.min_bytes


def test_a_side_is_measured_against_its_own_bytes() -> None:
    (row,) = rows_of(
        [HYBRID], [{"case": "a", "contender": "decode alone", "variants": ["pod"]}], LOG
    )
    assert row.min_bytes == 256 * (2 * 2 * 8 + 2 * 1024 * 2)


def test_contenders_follow_the_case() -> None:
    assert list(contenders_of(HYBRID)) == ["auto", "serial", "prefill alone", "decode alone"]
    assert list(contenders_of(ALONE)) == ["auto"]


@pytest.mark.parametrize("log", ["", "==ERROR== no permission\n", LOG.replace('"pod"', '"other"')])
def test_a_log_of_other_kernels_is_refused(log: str) -> None:
    with pytest.raises(DeviceError, match="ncu counted"):
        rows_of([HYBRID], LAUNCHES, log)


def test_without_ncu_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DeviceError, match="Nsight Compute"):
        measure_dram([HYBRID])
