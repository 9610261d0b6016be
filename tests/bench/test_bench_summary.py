"""What is read off a case's rows, and the sentences over a suite."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_support import make_case, make_results, make_rows
from rich.console import Console

from podrt.bench.report import failure_lines, result_table
from podrt.bench.summary import headlines, summarise

TIMES_US = {"auto": 100.0, "serial": 150.0, "streams": 140.0}
TIMES_US |= {"prefill alone": 40.0, "decode alone": 95.0, "1:1": 96.0, "2:1": 95.5, "9:9": None}
TIMES_US |= {"portable": 120.0, "portable-serial": 108.0}
PEERS_US = {"fa3 serial": 200.0, "fa3 prefill alone": 30.0, "fa3 varlen": None}


@pytest.fixture
def results():
    small = make_case("g/small", prefill=((16, 4096),))
    return make_results(
        make_rows(make_case(), TIMES_US, peers_us=PEERS_US, errors={"fa3 varlen": "Error: no"}),
        make_rows(small, {**TIMES_US, "prefill alone": 4.0}, peers_us=PEERS_US),
    )


def test_automatic_choice_and_best_of_all_are_apart(results):
    summary = summarise(results.rows)[0]
    assert summary.auto_us == 100.0
    assert summary.best == ["2:1", "1:1"]  # a tie; never two streams or one side alone
    assert summary.best_us == 95.5
    assert summary.regret == pytest.approx(100 / 95.5)
    assert summary.over_serial == 1.5


def test_rates(results):
    summary = summarise(results.rows)[0]
    assert summary.tflops == pytest.approx(summary.case.flops() / 100e-6 / 1e12)
    assert summary.gbs == pytest.approx(summary.case.min_bytes() / 100e-6 / 1e9)


def test_balance_is_a_fifth_of_serial_on_each_side(results):
    assert [summary.is_balanced for summary in summarise(results.rows)] == [True, False]


def test_headlines(results):
    text = "\n".join(headlines(summarise(results.rows)))
    assert "serial / auto: geomean 1.500 over 1 cases" in text
    assert "portable-serial / portable: least 0.900 of 2 cases" in text
    assert "auto / best of all candidates: geomean 1.047" in text
    assert "fa3 serial / auto: geomean 2.000 over 2 cases" in text
    assert "alone" not in text


def test_the_table_and_its_failures(results):
    console = Console(width=250)
    with console.capture() as capture:
        console.print(result_table(results, "suite"))
    text = capture.get()
    assert "2:1 = 1:1" in text
    assert "fa3 serial x" in text
    lines = failure_lines(results)
    assert any(line.startswith("9:9 failed in 2 case(s)") for line in lines)
    assert any("fa3 varlen failed in 1 case(s)" in line for line in lines)


def test_a_case_that_failed_is_shown_as_failed():
    results = make_results(make_rows(make_case(), {"auto": None, "serial": None}))
    console = Console(width=250)
    with console.capture() as capture:
        console.print(result_table(results, "suite"))
    assert "failed" in capture.get()
    assert headlines(summarise(results.rows)) == []


def test_launches_apart_are_candidates_too():
    (summary,) = summarise(make_rows(make_case(), {"auto": 100.0, "serial": 80.0, "streams": 60.0}))
    assert summary.best == ["serial"]
    assert summary.regret == 1.25


def test_predictions_stand_beside_what_was_measured():
    rows = make_rows(make_case(), {"auto": 100.0, "serial": 160.0, "1:8": None})
    rows = [
        replace(row, predicted_us=us) for row, us in zip(rows, (110.0, 150.0, 9.0), strict=True)
    ]
    (summary,) = summarise(rows)
    assert summary.predicted_us == 110.0
    assert summary.predicted_ratios == [1.1, 0.9375]
    assert "off by 8.3% in geomean, 10.0% at worst of 2 contenders" in "\n".join(
        headlines([summary])
    )
    console = Console(width=250)
    with console.capture() as capture:
        console.print(result_table(make_results(rows), "suite"))
    assert "110.0" in capture.get()
    assert summarise(make_rows(make_case(), {"auto": 1.0}))[0].predicted_us is None
