"""The loop of a sweep: checks before times, only what is new, and what interrupts it."""

from __future__ import annotations

import threading

import pytest
from sweep_support import BATCHES, FakeBench, combination, definition, run

from podrt.bench.sweep import points
from podrt.bench.sweep import runner as runner_module
from podrt.bench.sweep.records import load
from podrt.errors import CompileError, DeviceError

NAMES = [f"hopper decode_only_sms={sms}" for sms in (0, 8, 16)]
ALL = ["auto", "serial", "prefill alone", "decode alone", *NAMES]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sweep.jsonl"


@pytest.fixture
def bench():
    return FakeBench()


def statuses(path):
    return {(r.variant, r.case): r.status for r in load(path).results}


def test_everything_is_checked_then_timed_in_turns(path, bench):
    seen = []
    assert run(path, definition(), bench, on_result=seen.append) == (14, 0, False)
    assert [kind for kind, *_ in bench.log[:9]] == ["open", *["check"] * 7, "time"]
    assert bench.names("time") == [(batch, *ALL) for batch in BATCHES]
    assert [result.variant for result in seen] == 2 * ALL
    assert set(statuses(path).values()) == {"ok"}
    auto = {r.case: r.time_us for r in load(path).results if r.variant == "auto"}
    assert all(r.auto_us == auto[r.case] for r in load(path).results)


def test_what_is_wrong_is_never_timed(path, bench):
    bench.errors = {NAMES[1]: 0.5, NAMES[2]: float("nan")}
    run(path, definition(), bench)
    assert bench.names("time")[0] == (BATCHES[0], *ALL[:5])
    wrong = {r.variant: r for r in load(path).results if r.status == "wrong"}
    assert set(wrong) == set(NAMES[1:])
    assert wrong[NAMES[1]].max_rel_err == 0.5
    assert "error 0.5 > 0.016 at request 0, row 0 of q, head 3" in wrong[NAMES[1]].reason
    assert wrong[NAMES[2]].max_rel_err is None
    assert all(r.time_us is None for r in wrong.values())


def test_a_second_sweep_measures_only_what_is_new(path):
    run(path, definition())
    again = FakeBench()
    seen = []
    assert run(path, definition(), again, on_result=seen.append) == (0, 14, False)
    assert (again.log, len(seen)) == ([], 14)
    more = definition(
        *(combination(family="hopper", decode_only_sms=sms) for sms in (0, 8, 16, 24)),
        batches=(*BATCHES, "100@100 + 5"),
    )
    assert run(path, more, again) == (2 + 8, 14, False)
    # the automatic choice takes part again, so that its time is of the same turns
    assert again.names("time")[0] == (BATCHES[0], "auto", "hopper decode_only_sms=24")
    assert len(load(path).results) == 24


def test_other_samples_or_another_planner_are_new(path, monkeypatch):
    run(path, definition())
    assert run(path, definition().with_samples(4)).measured == 14
    assert run(path, definition().with_samples(4)).measured == 0
    monkeypatch.setattr(points, "kernel_key", lambda variant: "another kernel")
    assert run(path, definition().with_samples(4)).measured == 14
    assert len(load(path).results) == 14


def test_ctrl_c_keeps_what_is_measured(path, bench):
    bench.stop_at = BATCHES[1], NAMES[1]
    assert run(path, definition(), bench) == (7, 0, True)
    assert {case for _, case in statuses(path)} == {BATCHES[0]}
    assert run(path, definition()) == (7, 7, False)
    assert len(load(path).results) == 14


def test_what_fails_is_recorded_and_tried_again(path, bench):
    bench.failures[NAMES[0]] = CompileError("kernel", "", (), "error: too many registers")
    run(path, definition(), bench)
    failed = [r for r in load(path).results if r.status == "failed"]
    assert [r.variant for r in failed] == [NAMES[0]] * 2
    assert "too many registers" in failed[0].reason
    assert run(path, definition()) == (2, 12, False)
    assert set(statuses(path).values()) == {"ok"}


def test_without_a_right_automatic_choice_the_others_are_measured(path, bench):
    bench.errors["auto"] = 1.0
    run(path, definition(), bench)
    assert bench.names("time")[0] == (BATCHES[0], *ALL[1:])
    assert {r.auto_us for r in load(path).results} == {None}


def test_times_may_fail(path, bench):
    def time(launches, samples):
        raise MemoryError("no room for graphs")

    bench.time = time
    run(path, definition(), bench)
    assert set(statuses(path).values()) == {"failed"}


def test_a_case_that_does_not_fit_fails(path, bench):
    def open_bench(case):
        raise DeviceError(f"case {case.name!r} needs 99 GiB")

    bench.open = open_bench
    assert run(path, definition(), bench) == (14, 0, False)
    assert all("99 GiB" in r.reason for r in load(path).results)


def test_a_gpu_that_stopped_ends_the_sweep(path, bench):
    bench.failures[NAMES[1]] = RuntimeError("illegal address")

    def gpu_error():
        return RuntimeError("illegal address") if bench.log[-1][2] == (NAMES[1],) else None

    with pytest.raises(DeviceError, match=r"the GPU stopped working .* same command"):
        run(path, definition(), bench, gpu_error=gpu_error)
    assert statuses(path) == {(NAMES[1], BATCHES[0]): "failed"}


def test_a_variant_that_does_not_end_is_recorded_and_left_out(path, bench, monkeypatch):
    ended = threading.Event()

    def exit_process(code):
        assert code == runner_module.HUNG
        ended.set()

    def check(point):
        if point.name == NAMES[0]:
            assert ended.wait(20)
            raise RuntimeError("the process would be gone by now")
        return FakeBench.check(bench, point)

    monkeypatch.setattr(runner_module.os, "_exit", exit_process)
    bench.check = check
    one = definition(batches=BATCHES[:1])
    run(path, one, bench, limit_s=0.05)
    lines = path.read_text().splitlines()
    (hung,) = (line for line in lines if '"hung"' in line)
    assert "did not end within" in hung
    path.write_text("\n".join(lines[: lines.index(hung) + 1]) + "\n")  # where the process ended
    after = FakeBench()
    run(path, one, after)
    assert (BATCHES[0], NAMES[0]) not in after.names("check")
    assert statuses(path)[NAMES[0], BATCHES[0]] == "hung"


def test_many_variants_take_turns_a_part_at_a_time(path, bench):
    many = [combination(family="hopper", decode_only_sms=sms) for sms in range(50)]
    run(path, definition(*many, batches=BATCHES[:1]), bench)
    turns = bench.names("time")
    assert len(turns) == 3
    assert all(names[1] == "auto" for names in turns)
    assert sum(len(names) - 1 for names in turns) == 54 + 2


def test_a_case_of_one_side_has_one_baseline(path, bench):
    run(path, definition(batches=["64x4096"]), bench)
    assert [variant for variant, _ in statuses(path)] == ["auto", *NAMES]
