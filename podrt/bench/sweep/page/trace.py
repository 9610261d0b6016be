"""A timeline as `podrt explore trace` writes it, or as the cost model has it, for a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from podrt.bench.sweep.page.contents import layer_of, planned_gpu
from podrt.bench.sweep.records import Sweep
from podrt.errors import UnsupportedConfigError
from podrt.explore.record import record_of
from podrt.explore.timeline import simulate
from podrt.policy.policies import Policy
from podrt.policy.schedule import Scheduler
from podrt.workloads.lengths import batch_of_lengths, parse_lengths

#: Beside a sweep's records, what `podrt explore trace --record` wrote.
BESIDE = "timeline.json"


def timeline_of_sweep(sweep: Sweep, path: Path) -> dict[str, Any] | None:
    """Return the timeline of a sweep's page where nobody names one.

    It is the one that lies beside the records, under the name `BESIDE`; else the cost model's of
    the first batch, simulated; None where there is no model of the GPU or the kernels.

    Parameters
    ----------
    sweep : Sweep
    path : Path
        Of its records.
    """
    beside = path.with_name(BESIDE)
    return read_trace(beside) if beside.exists() else _simulated(sweep)


def read_trace(path: Path) -> dict[str, Any]:
    """Return the spans of a trace as rows of numbers, short enough for a page.

    Parameters
    ----------
    path : Path
        JSON of Chrome and Perfetto, or of ``--record``, whose first run is taken.

    Returns
    -------
    dict
        ``source``, ``gpu`` and ``title`` (text), ``roles`` and ``names`` (lists of text), ``rows``
        (the SMs, in order), ``spans``: lists of place in ``rows``, in ``roles`` and in ``names``,
        begin and duration in microseconds.

    Raises
    ------
    ValueError
        It is no such trace, or has no spans; names the file.
    """
    try:
        trace, title = json.loads(path.read_text(encoding="utf-8")), ""
        if "runs" in trace:
            record = record_of(trace)
            title = f"{record.batch}, {record.runs[0].policy}"
            trace = record.runs[0].timeline.chrome_trace()
        found = _spans(trace["traceEvents"])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: no trace of podrt explore trace --chrome or --record: {error!r}; "
            "write it again"
        ) from error
    if not found:
        raise ValueError(f"{path}: has no spans (events of ph 'X'); write it again")
    return _for_page(found, trace.get("otherData") or {}, title)


def _simulated(sweep: Sweep) -> dict[str, Any] | None:
    gpu, first = planned_gpu(sweep.gpus[0]), sweep.results[0]
    if gpu is None:
        return None
    layer = layer_of(first)
    batch = batch_of_lengths(parse_lengths(first.lengths), layer.page_size)
    try:
        timeline = simulate(Scheduler(layer, gpu, Policy()).schedule(batch), gpu)
    except UnsupportedConfigError:
        return None
    trace = timeline.chrome_trace()
    return _for_page(_spans(trace["traceEvents"]), trace["otherData"], f"{first.lengths}, auto")


def _for_page(
    found: Sequence[tuple[str, str, Any, float, float]], other: Mapping[str, Any], title: str
) -> dict[str, Any]:
    roles, names, rows = (list(dict.fromkeys(each[at] for each in found)) for at in range(3))
    rows.sort(key=lambda row: (not isinstance(row, int), row if isinstance(row, int) else str(row)))
    places = [{value: at for at, value in enumerate(each)} for each in (rows, roles, names)]
    return {
        "source": str(other.get("source", "of unknown source")),
        "gpu": str(other.get("gpu", "")),
        "title": title,
        "roles": roles,
        "names": names,
        "rows": list(map(str, rows)),
        "spans": [
            [places[0][row], places[1][role], places[2][name], round(at, 2), round(us, 2)]
            for role, name, row, at, us in found
        ],
    }


def _spans(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Any, float, float]]:
    """Return role, name, SM, begin and duration of every whole event."""
    titles = {
        event["pid"]: str(event["args"]["name"])
        for event in events
        if event.get("ph") == "M" and event.get("name") == "process_name"
    }
    return [
        (
            titles.get(event["pid"], str(event["pid"])),
            str(event["name"]),
            (event.get("args") or {}).get("sm", event["tid"]),
            float(event["ts"]),
            float(event["dur"]),
        )
        for event in events
        if event.get("ph") == "X"
    ]
