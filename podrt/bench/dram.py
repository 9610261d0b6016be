"""What launches move through DRAM, by Nsight Compute, against the bytes that must move.

`measure_dram` starts `ncu` on `python -m podrt.bench.dram_launches`, which launches each contender
of each case once; ncu counts a kernel with a cold L2, and clocks as they are.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from podrt.bench.case import Case, Side
from podrt.bench.contenders import AUTO, DECODE_ALONE, PREFILL_ALONE, SERIAL
from podrt.bench.tables import empty_table
from podrt.errors import DeviceError

#: Contenders that are counted, with the side of the batch that each computes.
CONTENDERS: dict[str, Side] = {
    AUTO: "both",
    SERIAL: "both",
    PREFILL_ALONE: "prefill",
    DECODE_ALONE: "decode",
}

_READ, _WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
_KERNEL = "Kernel Name"


@dataclass(frozen=True)
class DramRow:
    """What one contender moved on one case.

    Attributes
    ----------
    case, contender : str
    variants : list of str
        The kernels, in the order of their launches.
    read_bytes, written_bytes : int
        Through DRAM, all launches together.
    min_bytes : int
        Every key, value and query read once, every output written once.
    """

    case: str
    contender: str
    variants: list[str]
    read_bytes: int
    written_bytes: int
    min_bytes: int

    @property
    def ratio(self) -> float:
        """Bytes moved over those that must move."""
        return (self.read_bytes + self.written_bytes) / self.min_bytes


def contenders_of(case: Case) -> Iterator[str]:
    """Yield the names of the contenders that a case has."""
    sides = {"both": True, "prefill": bool(case.prefill), "decode": bool(case.decode)}
    return (
        name
        for name, side in CONTENDERS.items()
        if sides[side] and (case.is_hybrid or name == AUTO)
    )


def measure_dram(cases: Sequence[Case]) -> list[DramRow]:
    """Count what each contender of some cases moves.

    Raises
    ------
    DeviceError
        There is no `ncu` here, it may not read the counters, or a launch failed.
    """
    ncu = shutil.which("ncu")
    if ncu is None:
        raise DeviceError("--dram: there is no ncu on the PATH; install NVIDIA Nsight Compute")
    with tempfile.TemporaryDirectory(prefix="podrt-dram-") as folder:
        asked, counted = Path(folder, "cases.json"), Path(folder, "counters.csv")
        asked.write_text(json.dumps([asdict(case) for case in cases]), encoding="utf-8")
        command = [ncu, "--csv", "--page", "raw", "--print-units", "base", "--log-file", counted]
        command += ["--metrics", f"{_READ},{_WRITTEN}", "--profile-from-start", "off"]
        command += ["--cache-control", "all", "--clock-control", "none", "--kernel-name-base"]
        command += ["function", sys.executable, "-m", "podrt.bench.dram_launches", asked]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        log = counted.read_text(encoding="utf-8") if counted.exists() else ""
    if done.returncode:
        raise DeviceError(f"--dram: ncu ended with {done.returncode}: {_last(done.stderr, log)}")
    return rows_of(cases, [json.loads(line) for line in done.stdout.splitlines() if line], log)


def rows_of(
    cases: Sequence[Case], launches: Sequence[Mapping[str, Any]], log: str
) -> list[DramRow]:
    """Return the rows of what was launched, in turn, and of ncu's log of it.

    Parameters
    ----------
    cases : sequence of Case
    launches : sequence of {"case": name, "contender": name, "variants": names of kernels}
    log : str
        What ncu wrote, a line of its CSV for each kernel.

    Raises
    ------
    DeviceError
        The log has other kernels than were launched.
    """
    kernels = iter(_kernels(log))
    by_name, rows = {case.name: case for case in cases}, []
    for launch in launches:
        counts = [next(kernels, {}) for _ in launch["variants"]]
        found = [count.get(_KERNEL) for count in counts]
        if found != launch["variants"]:
            raise DeviceError(
                f"--dram: ncu counted {found} where {launch['variants']} ran; "
                f"its log ends with {_last(log)}"
            )
        case, contender = by_name[launch["case"]], launch["contender"]
        read, written = (
            sum(round(float(count[name].replace(",", ""))) for count in counts)
            for name in (_READ, _WRITTEN)
        )
        least = case.min_bytes(CONTENDERS[contender])
        rows.append(DramRow(case.name, contender, launch["variants"], read, written, least))
    return rows


def dram_table(rows: Sequence[DramRow]) -> Table:
    """Return a line per row, in MB."""
    table = empty_table()
    table.add_column("case", overflow="fold")
    table.add_column("contender")
    for heading in ("read MB", "written MB", "must MB", "moved / must"):
        table.add_column(heading, justify="right")
    for row in rows:
        sizes = (row.read_bytes, row.written_bytes, row.min_bytes)
        table.add_row(
            row.case, row.contender, *(f"{size / 1e6:.0f}" for size in sizes), f"{row.ratio:.3f}"
        )
    return table


def _kernels(log: str) -> Iterator[dict[str, str]]:
    """Yield ncu's lines of kernels; a line of units stands between them and the headings."""
    lines = [line for line in log.splitlines() if line.startswith('"')]
    table = csv.DictReader(io.StringIO("\n".join(lines)))
    return (row for row in table if row.get(_KERNEL))


def _last(*texts: str) -> str:
    """Return the last lines of the first text that has any."""
    found = next((text for text in texts if text.strip()), "no output")
    return " ".join(found.split("\n")[-6:]).strip()
