"""vLLM's own engine, scheduler and model runners, with podrt's backend: the tokens are right.

Without a GPU: `pretend_cuda`, `host_attention` and `recorded_graphs` say what stands for what.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm.version", reason="needs vllm: make vllm-test")

HERE = Path(__file__).resolve().parent
MODES = ("EAGER", "FULL", "FULL_DECODE_ONLY")
WORKLOADS = ("plain", "preempted", "drafted")
RUNNERS = (1, 2)

#: Several engines one after the other, in a process that first imports vLLM.
pytestmark = pytest.mark.timeout(900)


STALE = ("FULL:plain:stale", "FULL_DECODE_ONLY:plain:stale")


DETERMINISTIC = ("FULL:deterministic", "EAGER:invariant")
WINDOWS = ("EAGER:windows", "FULL:windows")


def scenarios(*modes: str) -> tuple[str, ...]:
    return tuple(f"{mode}:{workload}" for mode in modes for workload in WORKLOADS)


#: Model runner and scenarios of each process, the longest first.
PROCESSES = (
    *((runner, (*scenarios(*MODES), *STALE)) for runner in RUNNERS),
    *((runner, scenarios("BREAKABLE")) for runner in RUNNERS),
    (2, ("TRITON:plain", "TRITON:windows", *WINDOWS, *DETERMINISTIC)),
)


@cache
def results() -> dict[tuple[int, str], dict[str, Any]]:
    """Run all scenarios, two processes at a time; by runner and scenario."""
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda process: engine_runs(*process), PROCESSES)
        return {key: result for run in runs for key, result in run.items()}


def engine_runs(runner: int, asked: tuple[str, ...]) -> dict[tuple[int, str], dict[str, Any]]:
    """Run scenarios in a process of their own."""
    paths = [
        str(HERE),
        str(HERE.parents[1]),
        str(HERE.parents[2]),
        os.environ.get("PYTHONPATH", ""),
    ]
    done = subprocess.run(
        [sys.executable, str(HERE / "scenarios.py"), str(runner), *asked],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    assert len(found) == len(asked), done.stderr[-4000:]
    for result in found:
        assert "error" not in result, f"{result}\n{done.stderr[-4000:]}"
    return {(runner, result["scenario"]): result for result in found}


def expected_tokens() -> list[list[int]]:
    """Those of vLLM's own Triton backend, outside of graphs."""
    tokens: list[list[int]] = results()[2, "TRITON:plain"]["tokens"]
    return tokens


def result_of(runner: int, mode: str, workload: str) -> dict[str, Any]:
    return results()[runner, f"{mode}:{workload}"]


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("mode", [*MODES, "BREAKABLE"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_tokens_are_those_of_vllms_own_attention(runner: int, mode: str, workload: str) -> None:
    result = result_of(runner, mode, workload)
    assert result["tokens"] == expected_tokens()
    (served,) = result["served"]
    assert served["steps"] >= result["steps"] > 0


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_workloads_are_what_they_are_called(runner: int) -> None:
    assert result_of(runner, "FULL", "plain")["mixed"] > 0
    assert result_of(runner, "FULL", "preempted")["preempted"] > 0
    assert result_of(runner, "FULL", "drafted")["drafted"] > 0


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("runner", RUNNERS)
def test_every_step_is_a_replay_where_graphs_are_full(runner: int, workload: str) -> None:
    result = result_of(runner, "FULL", workload)
    assert result["replayed"] == result["steps"]


@pytest.mark.parametrize("runner", RUNNERS)
def test_steps_of_decodes_that_grow_alike_take_no_plan(runner: int) -> None:
    assert result_of(runner, "FULL", "plain")["grown"] > 0


@pytest.mark.parametrize("mode", ["FULL", "FULL_DECODE_ONLY"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_stale_plan_shows(runner: int, mode: str) -> None:
    stale = result_of(runner, mode, "plain:stale")
    assert stale["replayed"] > 0
    assert stale["tokens"] != expected_tokens()


@pytest.mark.parametrize("scenario", WINDOWS)
def test_windows_of_some_layers(scenario: str) -> None:
    """Which are a cache group of their own, whose blocks before the windows are freed."""
    result = results()[2, scenario]
    assert result["tokens"] == results()[2, "TRITON:windows"]["tokens"]
    assert {each["window_left"] for each in result["served"]} == {16, None}


@pytest.mark.parametrize("scenario", DETERMINISTIC)
def test_a_request_has_the_same_work_alone_and_in_any_step(scenario: str) -> None:
    """As podrt's option asks for, and VLLM_BATCH_INVARIANT, under which prompts are whole."""
    result = results()[2, scenario]
    assert result["tokens"] == expected_tokens()
    assert result["mixed"] > 0
    assert result["work"] == 1
    assert [served["deterministic"] for served in result["served"]] == [True]


def test_otherwise_the_rest_of_the_step_matters() -> None:
    result = result_of(2, "FULL", "plain")
    assert result["work"] > 1
    assert not result["served"][0]["deterministic"]


def test_drafts_count_as_decodes() -> None:
    (served,) = result_of(2, "FULL", "drafted")["served"]
    assert served["limits"]["max_decode_tokens"] == 3


def test_status_tells_what_is_served() -> None:
    (served,) = result_of(2, "EAGER", "plain")["served"]
    assert (served["layers"], served["num_heads"], served["num_kv_heads"]) == (2, 4, 2)
    assert (served["head_size"], served["page_size"], served["dtype"]) == (64, 16, "float16")
    assert (served["family"], served["policy"]) == ("hopper", "auto")
    assert served["runs"] == served["layers"] * served["steps"]
