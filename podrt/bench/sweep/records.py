"""The file of a sweep: JSON lines that are only ever appended, so that nothing measured is lost.

``{"kind": "sweep", "format": 1}``, then environments, skipped combinations and results as they
come. A process that is killed leaves at most a torn last line, which the next one cuts off. Of
several results of one variant and case on one GPU the last one counts.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

from podrt.bench.case import Case, split_lengths
from podrt.bench.sweep.axes import AXES, Combination, combination_of
from podrt.workloads.lengths import parse_lengths

FORMAT = 1
_HEADER = json.dumps({"kind": "sweep", "format": FORMAT}).encode()

Side = Literal["both", "prefill", "decode"]
Status = Literal["ok", "wrong", "failed", "hung"]

AUTO, SERIAL = "auto", "serial"
PREFILL_ALONE, DECODE_ALONE = "prefill alone", "decode alone"


@dataclass(frozen=True)
class Result:
    """What one variant did on one case; times are in microseconds.

    Attributes
    ----------
    key : str
        Digest of all that decides the result: policy, batch, layer, kernels, plan, GPU, method.
    variant : str
        Name of the combination, or `AUTO`, `SERIAL`, `PREFILL_ALONE`, `DECODE_ALONE`.
    policy : dict
        What is fixed of `podrt.Policy`.
    side : {"both", "prefill", "decode"}
        Of the case, what was run.
    case, lengths : str
        Its name, and the lengths as `parse_lengths` reads them.
    layer : dict
        ``num_qo_heads``, ``num_kv_heads``, ``head_dim``, ``dtype``, ``page_size``.
    environment : str
        Id of the environment in the file.
    kernels : list of str
        Names of the kernels, in the order of their launches.
    shares : dict
        How the plan shares the SMs: ``decode_only_sms``, ``prefill_only_sms``, ``prefill_share``,
        ``decode_share``.
    status : {"ok", "wrong", "failed", "hung"}
        ``"wrong"`` was beyond the tolerance and never timed; ``"hung"`` did not end.
    reason : str or None
        Why it is not ok.
    max_rel_err, tolerance : float or None
        Largest error against float64, over the largest value of its row, and what is allowed. An
        error that is no number is None.
    worst : str or None
        Where the largest error is.
    time_us : float or None
        Median.
    quartiles_us : [first, third] or None
    samples_us : list of float
        In the order they were taken.
    method : "graph", "events" or None
    sm_clock_mhz : int or None
    auto_us : float or None
        The automatic choice, timed in the same turns.
    predicted_us : float or None
        What the cost model says; None where it has no model.
    """

    key: str
    variant: str
    policy: dict[str, Any]
    side: Side
    case: str
    lengths: str
    layer: dict[str, Any]
    environment: str
    kernels: list[str]
    shares: dict[str, int]
    status: Status
    reason: str | None = None
    max_rel_err: float | None = None
    tolerance: float | None = None
    worst: str | None = None
    time_us: float | None = None
    quartiles_us: list[float] | None = None
    samples_us: list[float] | None = None
    method: str | None = None
    sm_clock_mhz: int | None = None
    auto_us: float | None = None
    predicted_us: float | None = None

    @property
    def relative(self) -> float | None:
        """Time over that of the automatic choice in the same turns; None without both."""
        if self.time_us is None or not self.auto_us:
            return None
        return self.time_us / self.auto_us

    @property
    def combination(self) -> Combination:
        """What was fixed."""
        return combination_of(self.policy)

    def to_case(self) -> Case:
        """Return the case that it is about."""
        prefill, decode = split_lengths(parse_lengths(self.lengths))
        return Case(name=self.case, prefill=prefill, decode=decode, **self.layer)


@dataclass(frozen=True)
class Skip:
    """A combination that was not run, on one case or (None) on any, and why."""

    variant: str
    policy: dict[str, Any]
    case: str | None
    reason: str


@dataclass(frozen=True)
class Sweep:
    """What a file holds.

    Attributes
    ----------
    environments : dict of str to dict
        By id, in the order of the file.
    results : tuple of Result
        The last one of each variant, case and GPU, in the order in which those first came.
    skips : tuple of Skip
        Each once.
    """

    environments: Mapping[str, Mapping[str, Any]]
    results: tuple[Result, ...]
    skips: tuple[Skip, ...]

    @cached_property
    def done(self) -> frozenset[str]:
        """Keys of what need not be measured again: all but what failed."""
        return frozenset(each.key for each in self.results if each.status != "failed")

    @property
    def gpus(self) -> tuple[str, ...]:
        """Names of the GPUs that results are of."""
        return tuple(dict.fromkeys(map(self._gpu_of, self.results)))

    def on(self, gpu: str) -> Sweep:
        """Return the sweep with the results of one GPU alone."""
        kept = tuple(each for each in self.results if self._gpu_of(each) == gpu)
        return Sweep(self.environments, kept, self.skips)

    @property
    def environment(self) -> Mapping[str, Any]:
        """Where the last results come from; empty without any."""
        used = [each.environment for each in self.results]
        found = [self.environments[name] for name in self.environments if name in used]
        return found[-1] if found else {}

    def _gpu_of(self, result: Result) -> str:
        return str(self.environments[result.environment].get("gpu"))


T = TypeVar("T", Result, Skip)


def load(path: Path) -> Sweep:
    """Read a file; a torn last line is left out.

    Raises
    ------
    ValueError
        It is no sweep of this version; names the file and the line.
    """
    environments: dict[str, Mapping[str, Any]] = {}
    results: dict[tuple[str, str, str, str], Result] = {}
    skips: list[Skip] = []
    for number, line in enumerate(_whole_lines(path.read_bytes()), start=1):
        try:
            entry = _entry(line, number)
            kind = entry.pop("kind")
            if kind == "environment":
                environments[entry["id"]] = entry["environment"]
            elif kind == "result":
                result = _checked(_made(Result, entry), environments)
                gpu = str(environments[result.environment].get("gpu"))
                place = result.variant, result.case, str(result.layer), gpu
                results[place] = result
            elif kind == "skip":
                skip = _made(Skip, entry)
                if skip not in skips:
                    skips.append(skip)
            elif kind != "sweep":
                raise ValueError(f"kind {kind!r} is unknown")
        except (ValueError, TypeError, KeyError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{path}, line {number}: no record of podrt explore sweep: {reason}; cut that line "
                "out, or measure into another file"
            ) from error
    return Sweep(environments, tuple(results.values()), tuple(skips))


class Journal:
    """A file that records are appended to; a line is on the disk when `append` returns.

    Parameters
    ----------
    path : path
        Made where there is none; a torn last line of one that is there is cut off.

    Attributes
    ----------
    sweep : Sweep
        What the file held when it was opened.
    was_torn : bool
        A torn line was cut off.

    Raises
    ------
    ValueError
        As `load`, or another process has it open.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        try:
            self._open(path)
        except BaseException:
            self._file.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{path}: another sweep is writing it; wait, or name another"
            ) from None
        held = path.read_bytes()
        whole = held[: held.rfind(b"\n") + 1]
        if not whole and not _HEADER.startswith(held):
            raise ValueError(f"{path}: is no file of podrt explore sweep; name another")
        self.was_torn = len(whole) < len(held)
        self.sweep = load(path) if whole else Sweep({}, (), ())
        self._known_skips = set(map(_frozen, self.sweep.skips))
        if self.was_torn:
            self._file.truncate(len(whole))
        if not whole:
            self._write(json.loads(_HEADER))

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add_environment(self, name: str, environment: Mapping[str, Any]) -> None:
        """Append an environment, unless the file has just that one."""
        if self.sweep.environments.get(name) != environment:
            self._write({"kind": "environment", "id": name, "environment": dict(environment)})

    def add(self, record: Result | Skip) -> None:
        """Append a record; of skipped ones each once."""
        if isinstance(record, Skip):
            if _frozen(record) in self._known_skips:
                return
            self._known_skips.add(_frozen(record))
        kind = "result" if isinstance(record, Result) else "skip"
        self._write({"kind": kind, **asdict(record)})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(entry, allow_nan=False) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def _frozen(skip: Skip) -> tuple[str, str | None, str]:
    return skip.variant, skip.case, skip.reason


def _whole_lines(content: bytes) -> Iterator[bytes]:
    """Yield the lines that end; the last one of a process that was killed may not."""
    yield from content[: content.rfind(b"\n") + 1].splitlines()


def _entry(line: bytes, number: int) -> dict[str, Any]:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise TypeError("it is no object")
    if number == 1 and (entry.get("kind") != "sweep" or entry.get("format") != FORMAT):
        raise ValueError(f'the first line must be {{"kind": "sweep", "format": {FORMAT}}}')
    return entry


def _made(kind: type[T], entry: Mapping[str, Any]) -> T:
    names = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    wrong = (entry.keys() - names) | (needed - entry.keys())
    if wrong:
        raise ValueError(f"fields {sorted(wrong)} are missing or unknown")
    return kind(**entry)


def _checked(result: Result, environments: Mapping[str, Any]) -> Result:
    if result.environment not in environments:
        raise ValueError(f"its environment {result.environment!r} is not above it")
    allowed: tuple[str, ...]
    for name, value, allowed in (
        ("status", result.status, get_args(Status)),
        ("side", result.side, get_args(Side)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} {value!r} is none of {', '.join(allowed)}")
    is_time = isinstance(result.time_us, int | float) and not isinstance(result.time_us, bool)
    if (result.status == "ok") != is_time or (is_time and not result.time_us > 0):  # type: ignore[operator]
        raise ValueError(f"status {result.status!r} with time_us {result.time_us!r}")
    for name in result.policy.keys() - AXES.keys():
        near = difflib.get_close_matches(name, AXES, n=3, cutoff=0.4) or list(AXES)
        raise ValueError(f"policy has no field {name!r}; try {', '.join(near)}")
    result.to_case()
    return result
