"""Suites as plain data: TOML files that `podrt.bench.expand` turns into cases."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podrt.bench.case import Case
from podrt.bench.expand import expand
from podrt.workloads.files import read_text

_SUITE_KEYS = {"description", "group", "sweep", "trace"}


@dataclass(frozen=True)
class Suite:
    """A named list of cases.

    Attributes
    ----------
    name : str
        Also the name of its results file.
    description : str
        What it holds, and what was left out.
    cases : tuple of Case
        In the order they are measured.
    """

    name: str
    description: str
    cases: tuple[Case, ...]


def suites_dir() -> Path:
    """Return the folder of suites: inside an installed wheel, or a checkout's own.

    Raises
    ------
    FileNotFoundError
        If neither exists.
    """
    here = Path(__file__).resolve()
    candidates = (here.parent / "suites", here.parents[2] / "bench" / "suites")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no suites in {' or '.join(map(str, candidates))}: reinstall podrt")


def suite_names() -> list[str]:
    """Return the names of the suites that podrt ships."""
    return sorted(path.stem for path in suites_dir().glob("*.toml"))


def load_suite(name: str, *, full: bool = False, trace_dir: Path | None = None) -> Suite:
    """Read a suite.

    Parameters
    ----------
    name : str
        A suite that podrt ships, or the path of a TOML file of your own.
    full : bool
        Every point of the original experiment instead of the suite's stated subset.
    trace_dir : path, optional
        Folder whose CSV files are the traces; the sample that podrt ships if None.

    Raises
    ------
    ValueError
        There is no such suite, or the file is malformed; names the entry.
    """
    path = Path(name) if name.endswith(".toml") else suites_dir() / f"{name}.toml"
    if not path.is_file():
        raise ValueError(
            f"suite={name!r}: there is no {path.name} here; allowed are "
            f"{', '.join(suite_names())}, or a path that ends with .toml"
        )
    text = read_text(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    return parse_suite(path.stem, data, full=full, trace_dir=trace_dir)


def parse_suite(
    name: str, data: Mapping[str, Any], *, full: bool = False, trace_dir: Path | None = None
) -> Suite:
    """Return the suite that the contents of a TOML file describe; raises as `load_suite`."""
    unknown = data.keys() - _SUITE_KEYS
    if unknown:
        raise ValueError(
            f"suite {name}: unknown key {sorted(unknown)}; allowed are {sorted(_SUITE_KEYS)}"
        )
    cases: list[Case] = []
    for kind in ("group", "sweep", "trace"):
        for entry in data.get(kind, ()):
            try:
                cases += expand(kind, entry, full=full, trace_dir=trace_dir)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else error
                raise ValueError(f"suite {name}, {kind} {entry.get('name')!r}: {reason}") from error
    repeated = [case for case, count in Counter(c.name for c in cases).items() if count > 1]
    if repeated:
        raise ValueError(f"suite {name}: two cases are called {repeated[0]!r}")
    return Suite(name, " ".join(data.get("description", "").split()), tuple(cases))
