"""A timeline from the JSON of Chrome and Perfetto, as `podrt explore trace` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_trace(path: Path) -> dict[str, Any]:
    """Return the spans of a trace as rows of numbers, short enough for a page.

    Returns
    -------
    dict
        ``source`` and ``gpu`` (text), ``roles`` and ``names`` (lists of text), ``rows`` (the SMs,
        in order), ``spans``: lists of place in ``rows``, in ``roles`` and in ``names``, begin and
        duration in microseconds.

    Raises
    ------
    ValueError
        It is no such trace, or has no spans; names the file.
    """
    try:
        trace = json.loads(path.read_text(encoding="utf-8"))
        events = trace["traceEvents"]
        found = _spans(events)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: no trace of podrt explore trace --chrome: {error!r}; write it again"
        ) from error
    if not found:
        raise ValueError(f"{path}: has no spans (events of ph 'X'); write it again")
    other = trace.get("otherData") or {}
    roles, names, rows = (list(dict.fromkeys(each[at] for each in found)) for at in range(3))
    rows.sort(key=lambda row: (not isinstance(row, int), row if isinstance(row, int) else str(row)))
    places = [{value: at for at, value in enumerate(each)} for each in (rows, roles, names)]
    return {
        "source": str(other.get("source", "of unknown source")),
        "gpu": str(other.get("gpu", "")),
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
