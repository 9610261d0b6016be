"""`SharedPrefixAttention.plan`: both parts of a batch are planned, or neither."""

from __future__ import annotations

from typing import Any

import pytest
from fake_gpu import FakeGpu
from runtime_support import HEAD_DIM, HEADS, KV_HEADS, PAGE_SIZE, STREAM, table_of

import podrt
from podrt.errors import UnsupportedConfigError
from podrt.runtime.session import Session

FEW: Any = ([0, 1, 2], [500, 600])
MORE: Any = ([0, 1, 2, 3], [700, 800, 900])


def planned(attention: podrt.SharedPrefixAttention, batch: Any, prefix: tuple[int, ...]) -> None:
    qo_indptr, kv_lens = batch
    attention.plan(
        qo_indptr,
        kv_lens,
        block_table=table_of(len(kv_lens)),
        shared_prefixes=[prefix],
        stream=STREAM,
    )


@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_part_cannot_be_planned_the_batch_before_stays_whole(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    attention = podrt.SharedPrefixAttention(
        HEADS, KV_HEADS, HEAD_DIM, page_size=PAGE_SIZE, dtype="float16"
    )
    planned(attention, FEW, (0, 2, 320))
    parts = attention._own, attention._shared
    before = [each.current_plan for each in parts]
    plan, calls = Session.plan, []

    def fails_once(session: Session, *arguments: Any) -> Any:
        calls.append(session)
        if len(calls) == failing + 1:
            raise UnsupportedConfigError("no such kernel")
        return plan(session, *arguments)

    monkeypatch.setattr(Session, "plan", fails_once)
    with pytest.raises(UnsupportedConfigError, match="no such kernel"):
        planned(attention, MORE, (0, 3, 640))
    assert all(each.current_plan is old for each, old in zip(parts, before, strict=True))
    assert attention.shared_prefixes == ((0, 2, 320),)
    planned(attention, MORE, (0, 3, 640))
    assert all(each.current_plan is not old for each, old in zip(parts, before, strict=True))
    assert attention.shared_prefixes == ((0, 3, 640),)


def test_both_parts_have_values_of_the_same_width() -> None:
    attention = podrt.SharedPrefixAttention(8, 2, 192, v_head_dim=128, page_size=PAGE_SIZE)
    parts = attention._own.layer, attention._shared.layer
    assert [(part.head_dim, part.value_dim) for part in parts] == [(192, 128)] * 2
