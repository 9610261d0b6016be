"""A run: saved case by case, resumed, limited, and what it does with failures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bench_support import ENVIRONMENT, make_case, make_rows

from podrt.bench import gpu_error, runner
from podrt.bench.measure import failed_rows
from podrt.bench.results import load
from podrt.bench.runner import run_cases
from podrt.errors import DeviceError

CASES = [make_case(name) for name in ("g/a", "g/b", "g/c")]


class CudaError(RuntimeError):
    pass


@pytest.fixture
def measured(monkeypatch):
    """Names of the cases that were measured, with a GPU that works."""
    names = []

    def measure(case, _peers):
        names.append(case.name)
        return make_rows(case, {"auto": 1.0})

    set_gpu(monkeypatch, lambda: None)
    monkeypatch.setattr(runner, "free_memory", lambda: None)
    monkeypatch.setattr(runner, "measure", measure)
    return names


def set_gpu(monkeypatch, synchronize):
    runtime = SimpleNamespace(deviceSynchronize=synchronize, CUDARuntimeError=CudaError)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(gpu_error, "load_cupy", lambda: cupy)


def run(path, **options):
    return run_cases(CASES, path, ENVIRONMENT, peers=[], **options)


def test_every_case_is_saved(measured, tmp_path):
    done = []
    outcome = run(tmp_path / "s.json", on_case=lambda: done.append(1))
    assert measured == ["g/a", "g/b", "g/c"]
    assert len(done) == 3
    assert outcome.missing == ()
    assert load(tmp_path / "s.json") == outcome.results


def test_a_killed_run_has_saved_what_it_measured_and_resumes(measured, tmp_path, monkeypatch):
    path = tmp_path / "s.json"
    measure = runner.measure

    def stop_at_b(case, peers):
        if case.name == "g/b":
            raise KeyboardInterrupt
        return measure(case, peers)

    monkeypatch.setattr(runner, "measure", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    assert load(path).case_names == {"g/a"}
    monkeypatch.setattr(runner, "measure", measure)
    outcome = run(path, resuming=True)
    assert measured == ["g/a", "g/b", "g/c"]
    assert load(path).case_names == {"g/a", "g/b", "g/c"}
    assert outcome.missing == ()


def test_without_resume_the_file_is_replaced(measured, tmp_path):
    run(tmp_path / "s.json")
    run(tmp_path / "s.json")
    assert len(measured) == 6
    assert len(load(tmp_path / "s.json").rows) == 3


def test_the_time_limit_is_kept_and_says_what_is_missing(measured, tmp_path, monkeypatch):
    clock_s = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock_s))
    outcome = run(tmp_path / "s.json", deadline_s=10.0)
    assert measured == ["g/a"]
    assert outcome.missing == ("g/b", "g/c")


def test_a_case_that_cannot_be_set_up_is_a_failure_with_its_reason(measured, tmp_path, monkeypatch):
    def fail(_case, _peers):
        raise DeviceError("needs 200 GiB")

    monkeypatch.setattr(runner, "measure", fail)
    rows = run(tmp_path / "s.json").results.rows
    assert {row.policy for row in rows} >= {"auto", "serial", "streams", "prefill alone"}
    for row in rows:
        assert row.time_us is None
        assert "needs 200 GiB" in row.error


def test_a_lost_gpu_ends_the_run_and_keeps_the_cases_before(measured, tmp_path, monkeypatch):
    path = tmp_path / "s.json"

    def lost():
        if len(measured) == 2:
            raise CudaError("illegal address")

    set_gpu(monkeypatch, lost)
    with pytest.raises(DeviceError, match=r"g/b.*--resume"):
        run(path)
    assert load(path).case_names == {"g/a"}


def test_failed_rows_have_no_bounds():
    (row, *_) = failed_rows(CASES[0], ValueError("x" * 1000))
    assert row.oracle_us is row.floor_us is row.time_us is None
    assert len(row.error) <= 300
