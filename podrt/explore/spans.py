"""From what an instrumented build recorded to a timeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.errors import PodrtError
from podrt.explore.timeline import ROLES, Dry, Span, Timeline
from podrt.kernels.tracing import BEGIN, DRY, END, Recorded
from podrt.plan import Plan

#: Of an event: side, CTA, warp, request, row_begin, split, kv_head.
_Key = tuple[int, ...]


def events_of(plan: Plan, ctas: int) -> int:
    """Return how many events launches of a plan record at most, `ctas` being those of all of them.

    Both warpgroups of a Hopper CTA record its prefill units. A CTA finds a queue dry once for each
    of its warps at most, or, where it asks both queues for every unit, once for each unit.
    """
    units = plan.num_prefill_units + plan.num_decode_units
    return 4 * plan.num_prefill_units + 2 * plan.num_decode_units + units + 8 * ctas


def timeline_of(found: Recorded, plan: Plan, gpu: str, num_sms: int) -> Timeline:
    """Return the timeline of launches of a plan, which begins with the first event.

    Parameters
    ----------
    found : Recorded
        Events of one run; those of several launches, one for each side, are on one time axis.
    plan : Plan
        What ran; its items are found by request, tile and split.
    gpu : str
        Its name.
    num_sms : int
        SMs of the GPU.

    Raises
    ------
    PodrtError
        Events are not those of a run of this plan: a unit that it does not have, or one that was
        begun and not ended, though no event was lost.
    """
    events = found.events
    if not len(events):
        return Timeline(gpu, num_sms, (), source="measured", lost_events=found.lost)
    times_us = _times_us(events["time_ns"])
    what = events["what"]
    kinds, sides, warps = what & 0xFF, what >> 8 & 0xFF, what >> 16
    keys = np.stack(
        [sides, events["cta"], warps]
        + [events[name] for name in ("request", "row_begin", "split", "kv_head")],
        axis=1,
    ).tolist()
    items = [_numbers(plan.prefill), _numbers(plan.decode)]
    spans, dry = [], []
    open_at: dict[_Key, list[float]] = {}
    for number in np.lexsort((kinds, times_us)):  # of equal times, the begin first
        key, at_us, sm = tuple(keys[number]), float(times_us[number]), int(events["sm"][number])
        if kinds[number] == DRY:
            dry.append(Dry(sm, ROLES[key[0]], at_us, key[1]))
        elif kinds[number] == BEGIN:
            open_at.setdefault(key, []).append(at_us)
        elif kinds[number] == END and open_at.get(key):
            spans.append(_span(items, key, sm, open_at[key].pop(), at_us))
        elif not found.lost:
            raise PodrtError(f"a unit was ended that was not begun: {key}; trace again")
    if not found.lost and any(open_at.values()):
        left = next(key for key, begins in open_at.items() if begins)
        raise PodrtError(f"a unit was begun and not ended: {left}; trace again")
    return Timeline(gpu, num_sms, tuple(spans), "measured", _first(dry), found.lost)


def _times_us(low_ns: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Return times from the first on; of the clock's low half, which starts again every 4.3 s."""
    since_any = (low_ns - low_ns[0]).astype(np.int32).astype(np.int64)  # wraps, as the clock does
    return np.asarray((since_any - since_any.min()) / 1e3, np.float64)


def _numbers(items: npt.NDArray[Any]) -> Mapping[tuple[int, int, int], int]:
    """Return the place of each item in its list, by request, tile and split."""
    names = ("request", "row_begin", "split")
    keys = zip(*(items[name].tolist() for name in names), strict=True)
    return {key: number for number, key in enumerate(keys)}


def _span(
    items: list[Mapping[tuple[int, int, int], int]],
    key: _Key,
    sm: int,
    begin_us: float,
    end_us: float,
) -> Span:
    side, cta, warp, request, row_begin, split, kv_head = key
    item = items[side].get((request, row_begin, split))
    if item is None:
        raise PodrtError(
            f"the plan has no {ROLES[side]} item of request {request}, row {row_begin}, split "
            f"{split}, which was recorded; was it planned anew?"
        )
    return Span(sm, ROLES[side], begin_us, end_us, item, kv_head, cta, warp)


def _first(dry: list[Dry]) -> tuple[Dry, ...]:
    """Return the first mark of each CTA and queue."""
    first: dict[tuple[int, str], Dry] = {}
    for mark in sorted(dry, key=lambda each: each.at_us):
        first.setdefault((mark.cta, mark.role), mark)
    return tuple(first.values())
