"""Results of a serving benchmark on disk: where they come from, and a row for each engine run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from podrt.bench.environment import describe
from podrt.bench.peers import peer_versions
from podrt.bench.results import write_whole
from podrt.gpu.device import current_device


def save(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    command: str,
    packages: Sequence[str],
    comparisons: Sequence[str] = (),
) -> None:
    """Write ``{"environment": ..., "comparisons": [...], "rows": [...]}``, a row on a line.

    Parameters
    ----------
    rows : sequence of dict
        Tokens, which other runs were compared with, are left out.
    path : Path
        Written whole.
    command : str
        What made the rows.
    packages : sequence of str
        Distributions whose versions are recorded.
    comparisons : sequence of str
        Sentences that set rows side by side.
    """
    environment = describe(current_device(), []) | {
        "packages": peer_versions(list(packages)),
        "command": command,
    }
    kept = [without_tokens(row) for row in rows]
    lines = ",\n".join(map(json.dumps, kept))
    head = json.dumps(environment, indent=1), json.dumps(list(comparisons), indent=1)
    text = f'{{"environment": {head[0]},\n"comparisons": {head[1]},\n"rows": [\n{lines}\n]}}\n'
    write_whole(text, path)


class Journal:
    """Rows of a benchmark as they are measured: printed, and saved if there is a file.

    Parameters
    ----------
    engine : str
        Word of the command line behind ``podrt bench serving``.
    arguments : sequence of str
        Those behind it.
    out : Path or None
        The file, written anew with every row.
    packages : sequence of str
        As of `save`.
    compare : callable
        Returns what is said of rows side by side.

    Attributes
    ----------
    rows : list of dict
        All so far, tokens included.
    """

    def __init__(
        self,
        engine: str,
        arguments: Sequence[str],
        out: Path | None,
        *,
        packages: Sequence[str],
        compare: Callable[[Sequence[dict[str, Any]]], list[str]],
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._command = shlex.join(["podrt", "bench", "serving", engine, *arguments])
        self._out, self._packages, self._compare = out, packages, compare

    def add(self, row: dict[str, Any]) -> None:
        """Take a row."""
        self.rows.append(row)
        print(json.dumps(without_tokens(row)), flush=True)
        if self._out:
            comparisons = self._compare(self.rows)
            save(
                self.rows,
                self._out,
                command=self._command,
                packages=self._packages,
                comparisons=comparisons,
            )

    def close(self) -> None:
        """Print what is said of all rows side by side; SystemExit where nothing was measured."""
        for line in self._compare(self.rows):
            print(line)
        if all("error" in row for row in self.rows):
            raise SystemExit(1)


def without_tokens(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without what there is for every token."""
    return {name: value for name, value in row.items() if name not in ("tokens", "margins")}
