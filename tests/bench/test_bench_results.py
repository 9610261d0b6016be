"""Result files: their schema, that they survive, and how a run goes on from one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_support import ENVIRONMENT, make_case, make_results, make_rows

from podrt.bench import results as results_files
from podrt.bench.results import Results, decode_summary, load, resume, save

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
ROW_KEYS = {
    *("case", "num_qo_heads", "num_kv_heads", "head_dim", "prefill", "decode", "variant", "policy"),
    *("time_us", "samples_us", "own_serial_us", "own_streams_us", "peers_us", "peer_errors"),
    *("oracle_us", "floor_us", "max_rel_err"),
}


@pytest.fixture
def results():
    rows = make_rows(make_case(), {"auto": 100.0, "serial": 130.0, "1:8": None})
    return make_results(rows)


def test_schema(results, tmp_path):
    path = tmp_path / "h100" / "peers.json"
    save(results, path)
    data = json.loads(path.read_text())
    assert data.keys() == {"environment", "rows"}
    assert data["environment"]["ceilings"].keys() == {"matmul_tflops", "read_gbs"}
    for row in data["rows"]:
        assert row.keys() >= ROW_KEYS
        assert row["prefill"] == [[512, 4096]]
        assert row["decode"] == {"requests": 64, "kv_len": 4096}
    failed = data["rows"][2]
    assert failed["time_us"] is None
    assert failed["error"]


def test_round_trip(results, tmp_path):
    save(results, tmp_path / "a.json")
    again = load(tmp_path / "a.json")
    assert again == results
    assert again.rows[0].to_case() == make_case()


def test_files_from_before_predictions_were_kept_can_be_read(results, tmp_path):
    save(results, tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    for row in data["rows"]:
        del row["predicted_us"]
    (tmp_path / "a.json").write_text(json.dumps(data))
    assert load(tmp_path / "a.json") == results


@pytest.mark.parametrize("path", sorted(RESULTS.glob("h*/peers*.json")), ids=str)
def test_committed_results_can_be_read(path):
    assert load(path).rows


def test_lengths_that_differ_are_listed():
    assert decode_summary([5, 6]) == [5, 6]
    assert decode_summary([5]) == [5]
    assert decode_summary([]) == []
    case = make_case(decode=0)
    assert make_rows(case, {"auto": 1.0})[0].to_case() == case


def test_a_write_that_is_stopped_leaves_the_old_file(results, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    save(results, path)
    old = path.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results_files.os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save(Results(ENVIRONMENT), path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_rows_of_a_case_replace_its_older_ones(results):
    other = make_rows(make_case("other"), {"auto": 5.0})
    newer = make_rows(make_case(), {"auto": 90.0})
    merged = results.with_rows(other).with_rows(newer)
    assert [(row.case, row.time_us) for row in merged.rows] == [
        ("other", 5.0),
        (make_case().name, 90.0),
    ]


def test_resume_without_a_file_starts_afresh(tmp_path):
    assert resume(tmp_path / "none.json", ENVIRONMENT) == Results(ENVIRONMENT)


def test_resume_keeps_rows_of_the_same_environment(results, tmp_path):
    save(results, tmp_path / "a.json")
    assert resume(tmp_path / "a.json", {**ENVIRONMENT, "date": "later"}) == results


def test_resume_refuses_rows_of_another_commit(results, tmp_path):
    save(results, tmp_path / "a.json")
    with pytest.raises(ValueError, match="git_commit abc -> def"):
        resume(tmp_path / "a.json", {**ENVIRONMENT, "git_commit": "def"})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"environment": {}, "rows": [{"case": "a"}]}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json"):
        load(path)
