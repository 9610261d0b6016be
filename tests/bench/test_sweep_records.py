"""The file of a sweep: appended to, resumed, and honest about what is broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sweep_support import BATCHES, ENVIRONMENT, FakeBench, combination, definition, layer, run

from podrt.bench.case import Case
from podrt.bench.sweep.axes import Skipped
from podrt.bench.sweep.points import points_of
from podrt.bench.sweep.records import FORMAT, Journal, Skip, load
from podrt.gpu.nominal import H100

EXAMPLE = Path(__file__).resolve().parents[1] / "data" / "sweep.jsonl"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sweep.jsonl"


def test_results_and_skips_come_back(path):
    bad = Skipped(combination(family="hopper", ratio=(1, 1)), "no such thing")
    outcome = run(path, definition(skipped=[bad]))
    found = load(path)
    # per batch: auto, serial, prefill alone, decode alone and three allocations
    assert outcome.measured == len(found.results) == 2 * 7
    assert found.gpus == (ENVIRONMENT["gpu"],)
    assert found.environment == ENVIRONMENT
    assert found.skips == (
        Skip("hopper ratio=1:1", {"family": "hopper", "ratio": [1, 1]}, None, "no such thing"),
    )
    result = found.results[-1]
    assert result.variant == "hopper decode_only_sms=16"
    assert result.policy == {"family": "hopper", "decode_only_sms": 16}
    assert result.lengths == result.to_case().name == BATCHES[1]
    assert result.shares["decode_only_sms"] == 16
    assert result.kernels[0].startswith("pod_hopper_")
    assert result.relative == pytest.approx(result.time_us / result.auto_us)


def test_whatever_is_cut_off_the_end_is_measured_again(path):
    run(path, definition())
    whole = path.read_bytes()
    for cut in (1, 100, len(whole) // 3, len(whole) - 5):
        path.write_bytes(whole[:-cut])
        load(path)
        bench = FakeBench()
        outcome = run(path, definition(), bench)
        assert outcome.measured + outcome.kept == 14
        assert (
            0
            < outcome.measured
            == len([n for n in path.read_bytes().splitlines() if b'"result"' in n]) - outcome.kept
        )
        assert {(r.variant, r.case) for r in load(path).results} == {
            (r["variant"], r["case"])
            for r in map(json.loads, whole.splitlines())
            if r["kind"] == "result"
        }
        path.write_bytes(whole)


def test_a_torn_line_is_told_of_and_cut_off(path):
    run(path, definition())
    path.write_bytes(path.read_bytes() + b'{"kind": "resu')
    assert len(load(path).results) == 14
    with Journal(path) as journal:
        assert journal.was_torn
    assert path.read_bytes().endswith(b"}\n")
    with Journal(path) as journal:
        assert not journal.was_torn


def test_an_empty_file_is_a_new_one(path):
    path.write_bytes(b"")
    assert run(path, definition()).measured == 14
    path.write_bytes(b'{"ki')
    assert run(path, definition()).measured == 14


def lines_of(path):
    return path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e.pop("case"), r"fields \['case'\] are missing"),
        (lambda e: e.update(colour="red"), r"fields \['colour'\]"),
        (lambda e: e.update(status="fine"), "status 'fine' is none of ok, wrong"),
        (lambda e: e.update(side="left"), "side 'left'"),
        (lambda e: e.update(time_us=None), "status 'ok' with time_us None"),
        (lambda e: e.update(time_us=-1.0), "time_us -1.0"),
        (lambda e: e.update(environment="e9"), "'e9' is not above it"),
        (lambda e: e.update(lengths="512@"), "is not a part"),
        (lambda e: e.update(policy={"famly": "hopper"}), "policy has no field 'famly'; try family"),
        (lambda e: e.update(kind="rest"), "kind 'rest'"),
        (lambda e: e.pop("kind"), "'kind' is missing"),
    ],
)
def test_a_broken_line_is_named(path, change, reason):
    run(path, definition())
    lines = lines_of(path)
    entry = json.loads(lines[5])
    change(entry)
    lines[5] = json.dumps(entry) + "\n"
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match=rf"sweep.jsonl, line 6: .*{reason}"):
        load(path)
    with pytest.raises(ValueError, match="line 6"):
        Journal(path)
    assert lines_of(path) == lines  # nothing was cut off


@pytest.mark.parametrize(
    "text",
    ["[1]\n", "hello\n", '{"environment": {}, "rows": []}\n', '{"kind": "sweep", "format": 99}\n'],
)
def test_another_file_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ValueError, match="line 1: no record of podrt explore sweep"):
        load(path)


def test_a_file_of_one_line_that_is_no_sweep_is_left_alone(path):
    path.write_text('{"traceEvents": []}')
    with pytest.raises(ValueError, match=r"sweep.jsonl: is no file of podrt explore sweep"):
        Journal(path)
    assert path.read_text() == '{"traceEvents": []}'


def test_two_sweeps_do_not_write_one_file(path):
    with Journal(path), pytest.raises(ValueError, match="another sweep is writing it"):
        Journal(path)
    Journal(path).__exit__(None, None, None)


def test_the_last_result_counts(path):
    run(path, definition())
    lines = lines_of(path)
    entry = json.loads(lines[-1])
    entry["time_us"] = 1.0
    path.write_text("".join([*lines, json.dumps(entry) + "\n"]))
    results = load(path).results
    assert len(results) == 14
    assert results[-1].time_us == 1.0


def test_skips_are_kept_once(path):
    skip = Skip("a", {}, None, "why")
    for _ in range(2):
        with Journal(path) as journal:
            journal.add(skip)
            journal.add(skip)
    assert load(path).skips == (skip,)


def test_the_example_is_of_this_format():
    found = load(EXAMPLE)
    assert json.loads(EXAMPLE.read_text().splitlines()[0]) == {"kind": "sweep", "format": FORMAT}
    assert {each.status for each in found.results} == {"ok", "wrong", "failed"}
    assert any(skip.case is None for skip in found.skips)


def test_committed_sweeps_can_be_replayed():
    results = Path(__file__).resolve().parents[2] / "bench" / "results"
    for committed in (EXAMPLE, *sorted(results.glob("*/sweep/*.jsonl"))):
        found = load(committed)
        assert found.results, committed
        assert found.environment["ceilings"], committed


def test_windows_caps_and_sinks_are_part_of_a_case_and_of_its_key():
    plain = Case.of([(64, 512), (1, 300)], layer(), name="c")
    cases = [
        plain,
        *(
            replace(plain, **scores)
            for scores in ({"window_left": 99}, {"logits_soft_cap": 5.0}, {"sinks": True})
        ),
    ]
    points, skips = points_of(replace(definition(combination()), cases=tuple(cases)), H100)
    assert skips == []
    auto = [point for point in points if point.name == "auto"]
    assert len({point.key for point in points}) == len(points)
    assert [point.result("e", "failed").to_case() for point in auto] == cases
    assert auto[0].result("e", "failed").layer.keys() == {
        "num_qo_heads",
        "num_kv_heads",
        "head_dim",
        "dtype",
        "page_size",
    }
