"""Instrumented builds: the same kernels, which record what `templates/common/trace.cuh` says.

They are a switch of rendering: what is recorded, and where, is put in front of a variant's source.
Arguments and plans are the same; the buffer is found through a global symbol of the module, so that
nothing of it is in other builds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.jit import KernelSource
from podrt.kernels.structs import Field, render_struct, struct_dtype

#: Of a module; a ``TraceBuffer*``, null until the host sets it.
TRACE_SYMBOL = "podrt_trace"
#: Kinds of events.
BEGIN, END, DRY = range(3)

_ALIGN = 16
_BUFFER = (
    Field("int", "count", "events so far"),
    Field("int", "room", "events that find room; one more place is behind them"),
)
_EVENT = (
    Field("int", "time_ns", "low half of the clock that all SMs share"),
    Field("int", "sm", ""),
    Field("int", "cta", ""),
    Field("int", "what", "kind, side << 8, warp of the CTA << 16"),
    Field("int", "request", "-1 with the next three where a queue is dry"),
    Field("int", "row_begin", "first packed row of the unit's tile"),
    Field("int", "split", ""),
    Field("int", "kv_head", ""),
)
BUFFER_DTYPE = struct_dtype(_BUFFER, align=_ALIGN)
EVENT_DTYPE = struct_dtype(_EVENT, align=_ALIGN)

_PRELUDE = "\n".join(
    (
        "#define PODRT_TRACE",
        render_struct("TraceBuffer", _BUFFER, align=_ALIGN),
        render_struct("TraceEvent", _EVENT, align=_ALIGN),
        "",
    )
)


class Recorded(NamedTuple):
    """What is in a buffer.

    Attributes
    ----------
    events : structured array of `EVENT_DTYPE`
        In no order.
    lost : int
        Events that found no room and are not there.
    """

    events: npt.NDArray[Any]
    lost: int


def traced(source: KernelSource) -> KernelSource:
    """Return the instrumented kernel of a variant's source."""
    return KernelSource(
        name=f"{source.name}_traced",
        arch=source.arch,
        text=_PRELUDE + source.text,
        entry=source.entry,
        options=source.options,
    )


def empty_buffer(room: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of a buffer without events, with room for so many."""
    buffer = np.zeros(BUFFER_DTYPE.itemsize + (room + 1) * EVENT_DTYPE.itemsize, np.uint8)
    buffer[: BUFFER_DTYPE.itemsize].view(BUFFER_DTYPE)["room"] = room
    return buffer


def recorded(buffer: npt.NDArray[np.uint8]) -> Recorded:
    """Return the events of a buffer that was copied from the GPU."""
    header = buffer[: BUFFER_DTYPE.itemsize].view(BUFFER_DTYPE)[0]
    events = buffer[BUFFER_DTYPE.itemsize :].view(EVENT_DTYPE)[: header["room"]]
    count = int(header["count"]) & 0xFFFF_FFFF  # unsigned on the device
    return Recorded(events[:count], max(count - len(events), 0))
