"""What a sweep measures: combinations of axes on cases, from a TOML file or the command line.

A file has ``batches``, a list of texts such as ``"2048@16384 + 64x16384"`` of one layer (``heads``,
``head_dim``, ``v_head_dim``, ``page_size``, ``dtype``), or the ``suite`` whose cases it takes
(``only`` those with a text in their name), and tables ``[[variants]]``: axes with a value or a list
of values each, of which all combinations are taken. ``samples`` and ``description`` may be there
too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from podrt.bench.case import Case
from podrt.bench.suites import load_suite, suites_dir
from podrt.bench.sweep.axes import (
    Combination,
    Skipped,
    combinations,
    read_values,
    sample,
)
from podrt.spec.attention import AttentionSpec, make_spec
from podrt.workloads.lengths import parse_heads, parse_lengths, parse_page_size

#: Samples of a timing: fewer than of podrt bench, as a sweep has many timings.
SAMPLES = 9

#: Folder of shipped definitions, in that of the suites.
_FOLDER = "sweeps"
_KEYS = {
    "description",
    "samples",
    "heads",
    "head_dim",
    "v_head_dim",
    "page_size",
    "dtype",
    "batches",
    "suite",
    "only",
    "variants",
}


@dataclass(frozen=True)
class Definition:
    """What is to be measured.

    Attributes
    ----------
    name, description : str
    combinations : tuple of Combination
        What to run each case with, beside the automatic choice, the serial form and each side
        alone.
    skipped : tuple of Skipped
        Combinations that no case can be run with.
    cases : tuple of Case
        In the order in which they are measured.
    samples : int
        Of each timing.
    """

    name: str
    description: str
    combinations: tuple[Combination, ...]
    skipped: tuple[Skipped, ...]
    cases: tuple[Case, ...]
    samples: int = SAMPLES

    def sampled(self, count: int, seed: int) -> Definition:
        """Return it with some of the combinations, chosen at random."""
        return replace(self, combinations=tuple(sample(self.combinations, count, seed)))

    def with_samples(self, samples: int) -> Definition:
        """Return it with another number of samples."""
        return replace(self, samples=samples)


def definition_names() -> list[str]:
    """Return the names of the definitions that podrt ships."""
    return sorted(path.stem for path in (suites_dir() / _FOLDER).glob("*.toml"))


def read_definition(name: str) -> Definition:
    """Read a definition.

    Parameters
    ----------
    name : str
        One that podrt ships, or the path of a TOML file.

    Raises
    ------
    ValueError
        There is none of that name, or it is malformed; says what.
    """
    path = Path(name) if name.endswith(".toml") else suites_dir() / _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ValueError(
            f"sweep={name!r}: there is no {path.name} here; allowed are "
            f"{', '.join(definition_names())}, or a path that ends with .toml"
        )
    try:
        return parse_definition(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def parse_definition(name: str, data: Mapping[str, Any]) -> Definition:
    """Return the definition that the contents of a TOML file describe; ValueError as above."""
    unknown = data.keys() - _KEYS
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)}; allowed are {sorted(_KEYS)}")
    tables = data.get("variants", ())
    if not tables:
        raise ValueError("has no [[variants]]: what is to be varied?")
    grid, skipped = _grid(tables)
    return Definition(
        name,
        " ".join(data.get("description", "").split()),
        tuple(grid),
        tuple(skipped),
        _cases(data),
        _samples(data),
    )


def cases_of(batches: Sequence[str], layer: AttentionSpec) -> tuple[Case, ...]:
    """Return the cases of some batches, as `parse_lengths` reads them, of one layer."""
    cases = [Case.of(parse_lengths(text), layer) for text in batches]
    return tuple({case.name: case for case in cases}.values())


def suite_cases(name: str, only: str) -> tuple[Case, ...]:
    """Return the cases of a suite of podrt bench whose name has some text; ValueError for none."""
    cases = load_suite(name).cases
    kept = tuple(replace(case, policies=()) for case in cases if only in case.name)
    if not kept:
        raise ValueError(f"only={only!r}: no case of suite {name} has it in its name")
    return kept


def _grid(tables: Sequence[Mapping[str, Any]]) -> tuple[list[Combination], list[Skipped]]:
    grid: list[Combination] = []
    skipped: list[Skipped] = []
    for table in tables:
        lists = {k: v if isinstance(v, list) else [v] for k, v in table.items()}
        found, refused = combinations({k: read_values(k, v) for k, v in lists.items()})
        grid += found
        skipped += refused
    return list(dict.fromkeys(grid)), list(dict.fromkeys(skipped))


def _cases(data: Mapping[str, Any]) -> tuple[Case, ...]:
    if ("batches" in data) == ("suite" in data):
        raise ValueError("must have batches or a suite, one of them")
    if "suite" in data:
        return suite_cases(data["suite"], data.get("only", ""))
    layer = make_spec(
        *parse_heads(str(data.get("heads", "32/8"))),
        data.get("head_dim", 128),
        parse_page_size(str(data.get("page_size", 16))),
        "NHD",
        data.get("dtype", "bfloat16"),
        v_head_dim=data.get("v_head_dim"),
    )
    return cases_of(data["batches"], layer)


def _samples(data: Mapping[str, Any]) -> int:
    samples = data.get("samples", SAMPLES)
    if type(samples) is not int or samples < 1:
        raise ValueError(f"samples={samples!r}: must be a whole number of at least 1")
    return samples
