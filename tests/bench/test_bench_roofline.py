"""Both resources at once, from measured times."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_support import make_case, make_results, make_rows
from cli_support import run, run_json

from podrt.bench.roofline import roofline

H100_PEERS = Path(__file__).resolve().parents[2] / "bench" / "results" / "h100" / "peers.json"
TIMES_US = {"auto": 210.0, "serial": 250.0, "prefill alone": 60.0, "decode alone": 190.0}


def test_shares_and_overlap() -> None:
    case = make_case()
    auto, serial = roofline(make_results(make_rows(case, TIMES_US)), ("auto", "serial"))
    # 512 tokens see 3584 keys and half of their own, 64 tokens 4096; 32 heads, 700 TFLOP/s
    pairs = 512 * 3584 + 512 * 513 // 2 + 64 * 4096
    assert auto.matmul_share == pytest.approx(4 * 32 * 128 * pairs / 210e-6 / 700e12)
    # keys and values of 8 heads, q and out of 32, 256 bytes each; 3 TB/s
    moved = 256 * (2 * 8 * (4096 + 64 * 4096) + 2 * 32 * (512 + 64))
    assert auto.memory_share == pytest.approx(moved / 210e-6 / 3e12)
    assert auto.waits_for == "memory"
    assert auto.overlap == pytest.approx((60 + 190 - 210) / 60)
    assert serial.overlap == 0


def test_a_batch_of_one_side_has_no_overlap() -> None:
    case = make_case(prefill=())
    (point,) = roofline(make_results(make_rows(case, {"auto": 100.0})))
    assert point.overlap is None


def test_what_was_not_measured_is_said() -> None:
    results = make_results(make_rows(make_case(), TIMES_US))
    with pytest.raises(ValueError, match="'portable': not measured; there are auto, serial"):
        roofline(results, ("portable",))
    with pytest.raises(ValueError, match="no ceilings"):
        roofline(make_results(make_rows(make_case(), TIMES_US), ceilings=None))


def test_of_committed_results(tmp_path: Path) -> None:
    points = run_json("explore", "roofline", str(H100_PEERS), "--policy", "auto")
    assert len(points) == 14
    assert all(0.7 < max(p["matmul_share"], p["memory_share"]) < 1 for p in points)
    assert all(0 < p["overlap"] <= 1 for p in points)


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("roofline.png", "roofline.svg"):
        text = run("explore", "roofline", str(H100_PEERS), "--plot", str(tmp_path / name))
        assert "waits for" in text
        assert (tmp_path / name).stat().st_size > 5000
