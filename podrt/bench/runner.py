"""Run a suite: case after case, saved after each, within a time limit if there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podrt.bench.case import Case
from podrt.bench.gpu_error import require_gpu
from podrt.bench.measure import failed_rows, measure
from podrt.bench.results import Results, resume, save
from podrt.bench.tensors import free_memory


@dataclass(frozen=True)
class Outcome:
    """What became of a suite.

    Attributes
    ----------
    results : Results
        What the file holds now.
    missing : tuple of str
        Names of the wanted cases that were not measured.
    """

    results: Results
    missing: tuple[str, ...]


def run_cases(
    cases: Sequence[Case],
    path: Path,
    environment: Mapping[str, Any],
    *,
    peers: list[str],
    resuming: bool = False,
    deadline_s: float | None = None,
    on_case: Callable[[], None] = lambda: None,
) -> Outcome:
    """Measure cases on CuPy's current stream and save them to `path` one by one.

    Parameters
    ----------
    cases : sequence of Case
    path : path
        Results file; replaced when the first case is done, unless `resuming`.
    environment : mapping
        As `podrt.bench.environment` describes it.
    peers : list of str
        Names in `podrt.bench.peers.PEERS`.
    resuming : bool
        Keep the file's rows and measure only the cases that it lacks.
    deadline_s : float, optional
        Reading of `time.monotonic` after which no case is started.
    on_case : callable
        Called after each case, those found in the file included.

    Raises
    ------
    ValueError
        The file to resume comes from another environment.
    DeviceError
        The GPU stopped working; the cases before are saved.
    """
    results = resume(path, environment) if resuming else Results(environment)
    missing = []
    for case in cases:
        if case.name in results.case_names:
            on_case()
        elif deadline_s is not None and time.monotonic() >= deadline_s:
            missing.append(case.name)
        else:
            results = results.with_rows(_measured(case, peers))
            save(results, path)
            on_case()
    return Outcome(results, tuple(missing))


def _measured(case: Case, peers: list[str]) -> Any:
    free_memory()
    try:
        rows = measure(case, peers)
    except Exception as error:  # recorded as the case's failure, once the GPU is known to live on
        rows = failed_rows(case, error)
    require_gpu(
        f"in case {case.name!r}",
        "the cases before it are saved, continue with --resume in a new process",
    )
    return rows
