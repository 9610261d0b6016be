"""From events to a timeline."""

from __future__ import annotations

import numpy as np
import pytest
from schedule_support import scheduled

from podrt.errors import PodrtError
from podrt.explore.spans import events_of, timeline_of
from podrt.kernels.tracing import BEGIN, DRY, END, EVENT_DTYPE, Recorded
from podrt.policy.policies import Policy

PLAN = scheduled([300, 1, 1], [1000, 3000, 40]).plan
PREFILL, DECODE = 0, 1


def event(time_ns, kind, side, item=None, kv_head=-1, *, sm=0, cta=0, warp=0):
    unit = (-1, -1, -1)
    if item is not None:
        row = (PLAN.prefill, PLAN.decode)[side][item]
        unit = row["request"], row["row_begin"], row["split"]
    what = kind | side << 8 | warp << 16
    return (np.uint32(time_ns % 2**32).astype(np.int32), sm, cta, what, *unit, kv_head)


def timeline(*events, lost=0):
    return timeline_of(Recorded(np.array(list(events), EVENT_DTYPE), lost), PLAN, "a GPU", 4)


def test_units_of_a_plan_are_told_apart_by_what_is_recorded():
    for policy in ({}, {"family": "portable"}, {"serial": True}):
        plan = scheduled(
            [5000, 300, *[1] * 40], [30000, 300, *[9000] * 40], policy=Policy(**policy)
        )
        for items in (plan.plan.prefill, plan.plan.decode):
            keys = items[["request", "row_begin", "split"]]
            assert len(np.unique(keys)) == len(items) > 1


def test_begin_and_end_make_a_span():
    found = timeline(
        event(5_000, BEGIN, PREFILL, 1, 2, sm=3, cta=7, warp=8),
        event(6_000, BEGIN, DECODE, 0, 5, sm=3, cta=7, warp=4),
        event(9_000, END, DECODE, 0, 5, sm=3, cta=7, warp=4),
        event(25_000, END, PREFILL, 1, 2, sm=3, cta=7, warp=8),
    )
    decode, prefill = found.spans
    assert (prefill.role, prefill.item, prefill.kv_head, prefill.sm) == ("prefill", 1, 2, 3)
    assert (prefill.begin_us, prefill.end_us, prefill.cta, prefill.warp) == (0, 20, 7, 8)
    assert (decode.role, decode.item, decode.kv_head) == ("decode", 0, 5)
    assert (decode.begin_us, decode.end_us) == (1, 4)
    assert found.source == "measured" and found.lost_events == 0
    summary = found.summary()
    assert summary["both_busy"] == pytest.approx(3 / 80)
    assert summary["prefill_busy"] == pytest.approx(20 / 80)
    assert summary["idle_sms"] == 3


def test_the_order_of_events_does_not_matter_and_the_clock_may_wrap():
    events = [
        event(2**32 + 500, END, DECODE, 0, 0),
        event(2**32 - 500, BEGIN, DECODE, 0, 0),
        event(2**31, BEGIN, DECODE, 0, 1, warp=4),
        event(2**31 + 10, END, DECODE, 0, 1, warp=4),
    ]
    (span,) = timeline(*events[:2]).spans
    assert (span.begin_us, span.end_us) == (0, 1)
    (span,) = timeline(*events[2:]).spans
    assert (span.begin_us, span.end_us) == (0, 0.01)


def test_the_first_mark_of_each_cta_and_queue_counts():
    found = timeline(
        event(1_000, BEGIN, DECODE, 0, 0),
        event(9_000, END, DECODE, 0, 0),
        event(4_000, DRY, PREFILL, cta=1, sm=2),
        event(3_000, DRY, PREFILL, cta=0),
        event(5_000, DRY, PREFILL, cta=0, warp=2),
        event(9_000, DRY, DECODE, cta=0),
    )
    marks = [(mark.cta, mark.role, mark.at_us) for mark in found.dry]
    assert marks == [(0, "prefill", 2), (1, "prefill", 3), (0, "decode", 8)]
    assert found.summary()["prefill_dry_us"] == 2
    assert found.summary()["decode_dry_us"] == 8


def test_what_was_lost_leaves_the_rest():
    whole = event(0, BEGIN, DECODE, 0, 0), event(9_000, END, DECODE, 0, 0)
    halves = event(1_000, END, DECODE, 1, 0), event(8_000, BEGIN, PREFILL, 0, 0)
    found = timeline(*whole, *halves, lost=2)
    assert [span.item for span in found.spans] == [0]
    assert found.lost_events == 2
    for half in halves:
        with pytest.raises(PodrtError, match="trace again"):
            timeline(*whole, half)


def test_units_of_another_plan_are_refused():
    begin, end = (list(event(at, kind, DECODE, 0, 0)) for at, kind in ((0, BEGIN), (9, END)))
    begin[4] = end[4] = 17
    with pytest.raises(PodrtError, match="no decode item of request 17"):
        timeline(tuple(begin), tuple(end))


def test_an_empty_buffer():
    assert timeline().spans == ()


def test_a_trace_has_a_row_for_what_is_at_the_same_time():
    lanes = [event(100 * warp, BEGIN, DECODE, 0, warp, sm=2, warp=warp) for warp in range(3)]
    lanes += [event(5_000, END, DECODE, 0, warp, sm=2, warp=warp) for warp in range(3)]
    lanes += [event(6_000, BEGIN, DECODE, 1, 0, sm=2), event(7_000, END, DECODE, 1, 0, sm=2)]
    trace = timeline(*lanes, event(8_000, DRY, DECODE, sm=2)).chrome_trace()
    assert trace["otherData"] == {"gpu": "a GPU", "source": "measured"}
    spans = [each for each in trace["traceEvents"] if each["ph"] == "X"]
    assert [each["tid"] for each in spans] == [2, 1002, 2002, 2]
    assert {each["pid"] for each in spans} == {"decode"}
    assert {each["args"]["sm"] for each in spans} == {2}
    (mark,) = (each for each in trace["traceEvents"] if each["ph"] == "i")
    assert (mark["ts"], mark["tid"], mark["name"]) == (8, 2, "decode queue dry")


def test_room_is_enough_for_every_event():
    units = PLAN.num_prefill_units + PLAN.num_decode_units
    assert events_of(PLAN, 132) >= 2 * units + PLAN.num_prefill_units * 2 + 4 * 132
