"""Batches become buckets, buckets become trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from schedule_support import layer_of
from tune_support import OTHER, fake_measure

from podrt.gpu.nominal import H100
from podrt.policy.candidates import candidate_names
from podrt.policy.policies import parse_policy
from podrt.tune.buckets import bucket_cases, read_shapes, run_trials

LONG = [(2048, 16384), *[(1, 8192)] * 64]


def test_the_first_batch_of_each_bucket_is_measured() -> None:
    alike = [*[(1, 7900)] * 62, (2000, 16000)]
    other = [(512, 4096), (1, 4096)]
    alone = [(1, 4096)] * 3
    cases = bucket_cases([LONG, alike, alone, other], layer_of(16), H100)
    assert [each.case.name for each in cases] == ["2048@16384 + 64x8192", "512@4096 + 4096"]
    assert cases[0].layer == "hopper 32/8 d128 bfloat16 page16"
    assert cases[0].case.policies == ("auto", *candidate_names("hopper"))


def test_candidates_are_those_of_the_family_that_serves_the_layer() -> None:
    (case,) = bucket_cases([LONG], layer_of(group=129), H100)
    assert case.layer.startswith("portable ")
    assert {parse_policy(name).family for name in case.case.policies[1:]} == {"portable"}


def test_trials_have_the_time_of_every_candidate() -> None:
    steps: list[None] = []
    cases = bucket_cases([LONG], layer_of(16), H100)
    (trial,) = run_trials(cases, fake_measure(OTHER, noise=0.0), lambda: steps.append(None))
    assert set(trial.times_us) == set(cases[0].case.policies)
    assert trial.winner() != "serial"
    assert len(steps) == 1


def test_shapes_are_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shapes.txt"
    path.write_text("# what we serve\n2048@16384 + 64x8192\n\n512@512 + 9 # short\n")
    assert read_shapes(path) == [LONG, [(512, 512), (1, 9)]]


@pytest.mark.parametrize(
    ("text", "reason"), [("", "has no batch"), ("# none\n", "has no batch"), ("9\n9@\n", "line 2")]
)
def test_bad_files_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "shapes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_shapes(path)
