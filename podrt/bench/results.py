"""Result files: one row per case and policy, written whole and at once after every case.

A file is ``{"environment": {...}, "rows": [...]}``, a row on a line of its own. `Row` says what a
row holds.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from podrt.bench.case import Case
from podrt.bench.environment import IDENTITY
from podrt.workloads.files import read_text


@dataclass(frozen=True)
class Row:
    """What one contender did on one case; times are in microseconds.

    Attributes
    ----------
    case : str
        Name of the case.
    num_qo_heads, num_kv_heads, head_dim, dtype, page_size
        Its layer; page_size None is a contiguous cache.
    prefill : list of [q_len, kv_len]
    decode : list of int, or {"requests": n, "kv_len": length} where all are alike
        Keys of every decode.
    policy : str
        podrt's policy, ``"streams"``, ``"prefill alone"`` or ``"decode alone"``.
    variant : str or None
        Names of the kernels that were launched.
    time_us : float or None
        Median; None if it failed.
    quartiles_us : [first, third] or None
    samples_us : list of float
        In the order they were taken.
    method : "graph", "events" or None
        How it was timed.
    sm_clock_mhz : int or None
        Median clock of the SMs while it ran.
    error : str or None
        Why there is no time.
    own_serial_us, own_streams_us : float or None
        podrt's two launches in turn, timed as one run, and on two streams.
    peers_us : {name: float or None}
    peer_errors : {name: str}
        Why a peer has no time.
    oracle_us, floor_us : float or None
        `podrt.bench.floors`, from the best prefill alone and decode alone of podrt and the peers.
    max_rel_err : float or None
        Largest error against the float64 reference, relative to the largest value of the row.
    predicted_us : float or None
        What `podrt.policy.cost` said of it, by the record that `environment` names; None where it
        has no model, and in files from before it was kept.
    window_left, logits_soft_cap, sinks, v_head_dim
        As of the case; none in files from before there were any.
    """

    case: str
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    page_size: int | None
    prefill: list[list[int]]
    decode: list[int] | dict[str, int]
    variant: str | None
    policy: str
    time_us: float | None
    quartiles_us: list[float] | None
    samples_us: list[float]
    method: str | None
    sm_clock_mhz: int | None
    error: str | None
    own_serial_us: float | None
    own_streams_us: float | None
    peers_us: dict[str, float | None]
    peer_errors: dict[str, str]
    oracle_us: float | None
    floor_us: float | None
    max_rel_err: float | None
    predicted_us: float | None = None
    window_left: int | None = None
    logits_soft_cap: float | None = None
    sinks: bool = False
    v_head_dim: int | None = None

    def to_case(self) -> Case:
        """Return the case that the row is about, without its list of policies."""
        decode = self.decode
        if isinstance(decode, dict):
            decode = [decode["kv_len"]] * decode["requests"]
        return Case(
            self.case,
            self.num_qo_heads,
            self.num_kv_heads,
            self.head_dim,
            self.dtype,  # type: ignore[arg-type]
            self.page_size,
            tuple((q_len, kv_len) for q_len, kv_len in self.prefill),
            tuple(decode),
            window_left=self.window_left,
            logits_soft_cap=self.logits_soft_cap,
            sinks=self.sinks,
            v_head_dim=self.v_head_dim,
        )


@dataclass(frozen=True)
class Results:
    """A run's environment and rows."""

    environment: Mapping[str, Any]
    rows: tuple[Row, ...] = ()

    @property
    def case_names(self) -> set[str]:
        """Names of the cases that have rows."""
        return {row.case for row in self.rows}

    def with_rows(self, rows: Sequence[Row]) -> Results:
        """Return the results with more rows, in place of older ones of the same cases."""
        names = {row.case for row in rows}
        kept = tuple(row for row in self.rows if row.case not in names)
        return replace(self, rows=(*kept, *rows))


def decode_summary(kv_lens: Sequence[int]) -> list[int] | dict[str, int]:
    """Return the lengths, or their number and length if all of several are the same."""
    if len(kv_lens) > 1 and len(set(kv_lens)) == 1:
        return {"requests": len(kv_lens), "kv_len": kv_lens[0]}
    return list(kv_lens)


def save(results: Results, path: Path) -> None:
    """Write a file in one step: whoever reads it, or kills this process, finds it whole."""
    write_rows(results.rows, results.environment, path)


def write_rows(rows: Iterable[Any], environment: Mapping[str, Any], path: Path) -> None:
    """Write ``{"environment": {...}, "rows": [...]}`` in one step, a row, a dataclass, a line."""
    header = json.dumps(dict(environment), indent=1)
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    write_whole(f'{{"environment": {header},\n"rows": [\n{lines}\n]}}\n', path)


def write_whole(text: str, path: Path) -> None:
    """Write a text file in one step, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load(path: Path) -> Results:
    """Read a file.

    Raises
    ------
    ValueError
        It is no results file of this version; names the file.
    """
    names = {field.name for field in fields(Row)}
    needed = {field.name for field in fields(Row) if field.default is MISSING}
    text = read_text(path)
    try:
        data = json.loads(text)
        environment, rows = data["environment"], data["rows"]
        wrong = {name for row in rows for name in (row.keys() - names) | (needed - row.keys())}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no results of podrt bench ({error!r})") from error
    if wrong:
        raise ValueError(
            f"{path}: fields {sorted(wrong)} are missing or unknown: made by another version; "
            "measure again"
        )
    return Results(environment, tuple(Row(**row) for row in rows))


def resume(path: Path, environment: Mapping[str, Any]) -> Results:
    """Return what `path` holds, to be continued in `environment`; nothing if there is no file.

    Raises
    ------
    ValueError
        The file's rows come from another environment.
    """
    if not path.exists():
        return Results(environment)
    found = load(path)
    different = [key for key in IDENTITY if found.environment.get(key) != environment[key]]
    if different:
        changes = ", ".join(
            f"{key} {found.environment.get(key)} -> {environment[key]}" for key in different
        )
        raise ValueError(f"{path}: cannot resume, {changes}; measure again without --resume")
    return found
