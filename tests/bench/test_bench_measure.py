"""One case, with contenders and clock made up: who is timed, and what the rows say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bench_support import make_case

from podrt.bench import measure as measuring
from podrt.bench.contenders import Contender, names_for
from podrt.bench.measure import measure
from podrt.bench.timing import Timing, Work
from podrt.errors import UnsupportedConfigError

TIMES_US = {"auto": 100.0, "serial": 150.0, "streams": 140.0, "prefill alone": 60.0}
TIMES_US |= {"decode alone": 90.0, "1:8": 120.0, "wrong": 1.0}
PREDICTED_US = {"auto": 98.7654, "wrong": 2.0}
PEERS_US = {"fa3 serial": 160.0, "fa3 prefill alone": 45.0, "fa3 decode alone": 95.0}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    def make_contender(name, _tensors):
        if name == "later":
            raise UnsupportedConfigError("policy='later': allowed are ...")
        return Contender(f"kernel {name}", lambda: name, slice(0, 1), PREDICTED_US.get(name))

    def time_all(works):
        times_us = {**TIMES_US, **PEERS_US}
        return [
            RuntimeError("lost") if (name := work.enqueue()) == "1:8" else timing(times_us[name])
            for work in works
        ]

    def timing(us):
        return Timing((us - 1, us, us + 1), "graph", None)

    def error_of(contender, _tensors, _expected):
        return float("nan") if contender.variant == "kernel wrong" else 0.001

    works = {name: Work(lambda name=name: name) for name in PEERS_US}
    monkeypatch.setattr(
        measuring, "make_tensors", lambda case: SimpleNamespace(case=case, expected=lambda: None)
    )
    monkeypatch.setattr(measuring, "make_contender", make_contender)
    monkeypatch.setattr(measuring, "_error_of", error_of)
    monkeypatch.setattr(measuring, "time_all", time_all)
    monkeypatch.setattr(
        measuring, "peer_works", lambda _n, _t: (works, {"fa3 varlen": "RuntimeError: no"})
    )


@pytest.fixture
def rows():
    case = make_case()
    policies = ("1:8", "later", "wrong")
    case = type(case)(**{**case.__dict__, "policies": policies})
    return {row.policy: row for row in measure(case, ["fa3"])}


def test_every_contender_has_a_row(rows):
    alone = ["prefill alone", "decode alone"]
    assert list(rows) == ["auto", "serial", "streams", *alone, "1:8", "later", "wrong"]
    assert rows["auto"].time_us == 100.0
    assert rows["auto"].samples_us == [99.0, 100.0, 101.0]
    assert rows["auto"].quartiles_us == [99.5, 100.5]
    assert rows["serial"].variant == "kernel serial"
    assert rows["auto"].predicted_us == 98.77
    assert rows["serial"].predicted_us is None


@pytest.mark.parametrize(
    ("policy", "reason"),
    [("later", "policy='later'"), ("wrong", "wrong result"), ("1:8", "lost")],
)
def test_what_fails_has_a_reason_and_no_time(rows, policy, reason):
    assert rows[policy].time_us is None
    assert rows[policy].samples_us == []
    assert reason in rows[policy].error


def test_bounds_come_from_the_best_side_of_podrt_and_the_peers(rows):
    assert rows["auto"].oracle_us == 90.0
    assert rows["auto"].floor_us == pytest.approx(90.0 * 1.02)  # prefill is half of decode


def test_baselines_and_peers_stand_in_every_row(rows):
    for row in rows.values():
        assert row.own_serial_us == 150.0
        assert row.own_streams_us == 140.0
        assert row.peers_us == {**PEERS_US, "fa3 varlen": None}
        assert row.peer_errors == {"fa3 varlen": "RuntimeError: no"}


def test_a_case_of_one_side_is_its_own_side_alone():
    case = make_case(decode=0)
    (row,) = measure(case, [])
    assert (row.policy, row.time_us, row.own_serial_us) == ("auto", 100.0, None)
    assert row.oracle_us == row.floor_us == 45.0  # the peer's


def test_names_of_a_suite_are_not_repeated():
    case = make_case()
    case = type(case)(**{**case.__dict__, "policies": ("serial", "50:50")})
    assert names_for(case).count("serial") == 1
