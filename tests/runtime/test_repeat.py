"""The short way through `run`: the same launches, and only for tensors like the last ones."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, TorchTensor
from runtime_support import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LIMITS,
    NUM_PAGES,
    PAGE_SIZE,
    STREAM,
    is_of,
    launched,
    layer,
    plan,
    reserved,
    table_of,
    tensors,
)

from podrt.runtime import launcher as launcher_module
from podrt.runtime.launcher import _MOST_LAYOUTS
from podrt.runtime.session import Session

ROWS = 41


@pytest.fixture
def long_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of q of the runs that took the long way."""
    seen: list[int] = []
    real = Session.run

    def run(self: Session, planned: Any, tensors: Any, *args: Any, **options: Any) -> None:
        seen.append(tensors.q.shape[0])
        real(self, planned, tensors, *args, **options)

    monkeypatch.setattr(Session, "run", run)
    return seen


def layers(count: int) -> list[dict[str, Any]]:
    """Tensors of layers, which differ in their addresses."""
    given = []
    for at in range(count):
        one = tensors(ROWS)
        for tensor in one.values():
            tensor.pointer += at << 24
        given.append(one)
    return given


def what_was_launched(gpu: FakeGpu) -> list[tuple[Any, ...]]:
    return [(x.variant, x.grid, x.stream, x.arguments.tobytes()) for x in launched(gpu)]


@pytest.mark.parametrize("policy", ["auto", "serial"])
def test_launches_are_those_of_the_long_way(
    gpu: FakeGpu, long_runs: list[int], policy: str
) -> None:
    attention = layer(policy=policy)
    plan(attention)
    for one in layers(5):
        attention.run(**one, stream=STREAM)
    short = what_was_launched(gpu)
    assert long_runs == [ROWS]
    for one in layers(5):
        attention._session.repeatable = None  # type: ignore[union-attr]
        attention.run(**one, stream=STREAM)
    assert len(long_runs) == 6
    assert short == what_was_launched(gpu)


def test_a_new_plan_is_run_the_short_way(gpu: FakeGpu, long_runs: list[int]) -> None:
    attention = layer()
    plan(attention)
    attention.run(**tensors(ROWS), stream=STREAM)
    for batch in (([0, 5], [90]), ([0, 1, 2], [700, 30]), ([0, 64], [64])):
        plan(attention, batch)
        launched(gpu)
        rows = batch[0][-1]
        attention.run(**tensors(rows), stream=STREAM)
        (launch,) = launched(gpu)
        assert launch.header["num_decode_items"] == len(attention.current_plan.decode)
        assert launch.header["num_prefill_items"] == len(attention.current_plan.prefill)
    assert long_runs == [ROWS]


def test_out_is_allocated_on_the_short_way_too(gpu: FakeGpu, long_runs: list[int]) -> None:
    attention = layer()
    plan(attention)
    attention.run(**tensors(ROWS))
    given = tensors(ROWS, out=None)
    out = attention.run(**given)
    assert out is given["q"].made[0]
    assert long_runs == [ROWS]
    assert int(launched(gpu)[-1].arguments["out"]) == out.pointer


def test_out_is_as_wide_as_values_on_the_short_way_too(gpu: FakeGpu, long_runs: list[int]) -> None:
    attention = layer(v_head_dim=64)
    plan(attention)
    values = TorchTensor((NUM_PAGES, PAGE_SIZE, KV_HEADS, 64), 1 << 42)
    narrow = TorchTensor((ROWS, HEADS, 64), 1 << 43)
    attention.run(**tensors(ROWS, v_cache=values, out=narrow))
    given = tensors(ROWS, v_cache=values, out=None)
    out = attention.run(**given)
    assert out is given["q"].made[0]
    assert tuple(out.shape) == (ROWS, HEADS, 64)
    assert int(launched(gpu)[-1].arguments["out"]) == out.pointer
    assert long_runs == [ROWS]


class Exported:
    """A tensor of a framework that only the exchange protocols reach; it has no length."""

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("not today")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


def changed(name: str, **changes: Any) -> dict[str, Any]:
    given = tensors(ROWS)
    for attribute, value in changes.items():
        setattr(given[name], attribute, value)
    return given


Q_SHAPE, CACHE = (ROWS, HEADS, HEAD_DIM), (NUM_PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM)
UNLIKE: dict[str, tuple[dict[str, Any], type[Exception] | None]] = {
    "no tensor": (tensors(ROWS, q=None), TypeError),
    "another framework": (tensors(ROWS, q=Exported()), TypeError),
    "NumPy": (tensors(ROWS, q=np.zeros(Q_SHAPE, np.float16)), ValueError),
    "dtype of q": (changed("q", dtype="torch.bfloat16"), TypeError),
    "dtype of the values": (changed("v_cache", dtype="torch.bfloat16"), TypeError),
    "device of q": (changed("q", device_number=1), ValueError),
    "device of the keys": (changed("k_cache", device_number=1), ValueError),
    "device of out": (changed("out", device_number=1), ValueError),
    "head_dim of q": (tensors(ROWS, q=TorchTensor((ROWS, HEADS, 64), 1 << 40)), ValueError),
    "heads of out": (tensors(ROWS, out=TorchTensor((ROWS, 4, HEAD_DIM), 1 << 43)), ValueError),
    "rows of out": (tensors(ROWS, out=TorchTensor((40, HEADS, HEAD_DIM), 1 << 43)), ValueError),
    "rows of all": (tensors(ROWS + 1), ValueError),
    "no rows": (tensors(0), ValueError),
    "page size": (
        tensors(ROWS, k_cache=TorchTensor((NUM_PAGES, 32, KV_HEADS, HEAD_DIM), 1 << 41)),
        ValueError,
    ),
    "pages of one cache": (
        tensors(ROWS, v_cache=TorchTensor((9, *CACHE[1:]), 1 << 42)),
        ValueError,
    ),
    "strides of q": (changed("q", strides=(HEADS * HEAD_DIM * 2, HEAD_DIM * 2, 2)), ValueError),
    "address of out": (changed("out", pointer=(1 << 43) + 2), ValueError),
    "address of the keys": (changed("k_cache", pointer=(1 << 41) + 8), ValueError),
    "wider rows": (changed("q", strides=(HEADS * 256, 256, 1)), None),
    "more pages": (
        tensors(
            ROWS,
            k_cache=TorchTensor((9999, *CACHE[1:]), 1 << 41),
            v_cache=TorchTensor((9999, *CACHE[1:]), 1 << 42),
        ),
        None,
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_whatever_is_unlike_goes_the_long_way(
    gpu: FakeGpu, long_runs: list[int], case: str
) -> None:
    given, error = UNLIKE[case]
    attention = layer()
    plan(attention)
    for _ in range(2):
        attention.run(**tensors(ROWS), stream=STREAM)
    launched(gpu)
    if error is None:
        attention.run(**given, stream=STREAM)
        assert long_runs == [ROWS, ROWS]
        assert len(launched(gpu)) == 1
        return
    with pytest.raises(error):
        attention.run(**given, stream=STREAM)
    assert launched(gpu) == []


def sinks_of(pointer: int = 1 << 44, **changes: Any) -> TorchTensor:
    tensor = TorchTensor((HEADS,), pointer, "torch.float32")
    for attribute, value in changes.items():
        setattr(tensor, attribute, value)
    return tensor


def test_sinks_go_the_short_way_wherever_they_lie(gpu: FakeGpu, long_runs: list[int]) -> None:
    attention = layer()
    plan(attention)
    addresses = [1 << 44, (1 << 44) + 4, 1 << 45]
    for at in addresses:
        attention.run(**tensors(ROWS), sinks=sinks_of(at), stream=STREAM)
    assert long_runs == [ROWS]
    assert [int(launch.arguments["sinks"]) for launch in launched(gpu)] == addresses


def test_runs_with_sinks_and_without_take_turns(gpu: FakeGpu, long_runs: list[int]) -> None:
    attention = layer()
    plan(attention)
    given = [None, sinks_of(), sinks_of(), None, None, sinks_of(strides=(2,))]
    for sinks in given:
        attention.run(**tensors(ROWS), sinks=sinks, stream=STREAM)
    assert long_runs == [ROWS] * 4
    launches = launched(gpu)
    assert [bool(launch.arguments["sinks"]) for launch in launches] == [
        s is not None for s in given
    ]
    assert [int(launch.arguments["sinks_stride"]) for launch in launches] == [0, 1, 1, 0, 0, 2]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"dtype": "torch.bfloat16"}, TypeError),
        ({"device_number": 1}, ValueError),
        ({"shape": (4,)}, ValueError),
    ],
)
def test_sinks_that_are_unlike_are_checked(
    gpu: FakeGpu, changes: dict[str, Any], error: type[Exception]
) -> None:
    attention = layer()
    plan(attention)
    for _ in range(2):
        attention.run(**tensors(ROWS), sinks=sinks_of(), stream=STREAM)
    launched(gpu)
    with pytest.raises(error, match="sinks: "):
        attention.run(**tensors(ROWS), sinks=sinks_of(**changes), stream=STREAM)
    assert launched(gpu) == []


def test_another_stream_goes_the_long_way(gpu: FakeGpu, long_runs: list[int]) -> None:
    attention = layer()
    plan(attention)
    for stream in (STREAM, 8, STREAM, STREAM):
        attention.run(**tensors(ROWS), stream=stream)
    assert long_runs == [ROWS] * 3
    gpu.stream_keys[STREAM] = "another stream of the same handle"
    attention.run(**tensors(ROWS), stream=STREAM)
    assert long_runs == [ROWS] * 4
    assert [launch.stream for launch in launched(gpu)] == [STREAM, 8, STREAM, STREAM, STREAM]


@pytest.mark.parametrize("name", ["q", "out"])
@pytest.mark.parametrize("is_reserved", [True, False])
def test_strides_of_a_single_row_do_not_pass_for_those_of_more(
    gpu: FakeGpu, name: str, is_reserved: bool
) -> None:
    """They are never stepped over, so anything is right for one row: not aligned, or 0."""
    attention = reserved() if is_reserved else layer()
    plan(attention, ([0, 1], [50]))
    for stride in (1030, 0 if name == "out" else 1030):
        odd = {"strides": (stride, HEAD_DIM, 1)}
        shapes = ((rows, HEADS, HEAD_DIM) for rows in (1, 2))
        one, two = ({name: TorchTensor(shape, 1 << 40, **odd)} for shape in shapes)
        plan(attention, ([0, 1], [50]))
        attention.run(**tensors(1, **one), stream=STREAM)
        plan(attention, ([0, 1, 2], [50, 50]))
        with pytest.raises(ValueError, match=rf"{name}: got strides \({stride}"):
            attention.run(**tensors(2, **two), stream=STREAM)


@pytest.mark.parametrize("batch", [([0, 1, 2], [50, 200]), ([0, 1, 2, 3], [50] * 3)])
def test_a_contiguous_cache_must_hold_the_next_batch_too(gpu: FakeGpu, batch: Any) -> None:
    attention = layer(page_size=None)
    cache = TorchTensor((2, 100, KV_HEADS, HEAD_DIM), 1 << 41)
    attention.plan([0, 1, 2], [50, 60], stream=STREAM)
    attention.run(**tensors(2, k_cache=cache, v_cache=cache), stream=STREAM)
    attention.plan(*batch, stream=STREAM)
    launched(gpu)
    rows = batch[0][-1]
    with pytest.raises(ValueError, match="k_cache has 2 rows of 100 tokens; the batch needs"):
        attention.run(**tensors(rows, k_cache=cache, v_cache=cache), stream=STREAM)
    assert launched(gpu) == []


def test_a_cache_without_pages_holds_only_batches_without_keys(gpu: FakeGpu) -> None:
    attention = layer()
    cache = TorchTensor((0, PAGE_SIZE, KV_HEADS, HEAD_DIM), 1 << 41)
    for kv_len in (0, 20):  # the second time, tensors are like those of a run that was fine
        attention.plan([0, 1], [kv_len], block_table=table_of(1), stream=STREAM)
        launched(gpu)
        given = tensors(1, k_cache=cache, v_cache=cache)
        if kv_len:
            with pytest.raises(ValueError, match="k_cache has no pages; the batch has requests of"):
                attention.run(**given, stream=STREAM)
        else:
            attention.run(**given, stream=STREAM)
        assert len(launched(gpu)) == (kv_len == 0)


def test_page_numbers_of_every_plan_are_checked(gpu: FakeGpu, long_runs: list[int]) -> None:
    attention = layer()
    attention.plan([0, 1], [20], block_table=[[5, NUM_PAGES - 1]], stream=STREAM)
    attention.run(**tensors(1), stream=STREAM)
    attention.plan([0, 1], [20], block_table=[[5, NUM_PAGES]], stream=STREAM)
    launched(gpu)
    with pytest.raises(ValueError, match=f"page 1 of request 0 is {NUM_PAGES}"):
        attention.run(**tensors(1), stream=STREAM)
    assert launched(gpu) == []


def test_rows_of_padding_go_the_short_way_after_reserve(gpu: FakeGpu, long_runs: list[int]) -> None:
    attention = reserved()
    plan(attention)
    for rows in (41, 48, 64, LIMITS["max_tokens"]):
        attention.run(**tensors(rows), stream=STREAM)
    assert long_runs == [41]
    with pytest.raises(ValueError, match="q: got shape"):
        attention.run(**tensors(40), stream=STREAM)


@pytest.mark.parametrize("with_out", [True, False])
def test_no_tensor_of_a_run_is_kept_alive(gpu: FakeGpu, with_out: bool) -> None:
    attention = layer()
    plan(attention)
    kept = []
    attention.run(**tensors(ROWS), stream=STREAM)
    for _ in range(3):
        given = tensors(ROWS) if with_out else tensors(ROWS, out=None)
        out = attention.run(**given)
        kept += [weakref.ref(tensor) for tensor in [*given.values(), out] if tensor is not None]
        given["q"].made.clear()
        del given, out
    gc.collect()
    assert [reference() for reference in kept] == [None] * len(kept)


def test_a_page_table_lives_until_the_next_plan(gpu: FakeGpu) -> None:
    attention = layer()
    tables = []
    for at in range(4):
        table = TorchTensor((2, 400), (1 << 38) + (at << 24), "torch.int32")
        plan(attention, block_table=table)
        attention.run(**tensors(ROWS), stream=STREAM)
        tables.append(weakref.ref(table))
        del table
    gc.collect()
    assert [reference() is None for reference in tables] == [True, True, True, False]


@pytest.mark.parametrize("case", ["no tensor", "another framework", "rows of all"])
def test_nothing_is_allocated_like_a_q_that_is_refused(gpu: FakeGpu, case: str) -> None:
    given, error = UNLIKE[case]
    assert error is not None
    attention = layer()
    plan(attention)
    attention.run(**tensors(ROWS), stream=STREAM)
    launched(gpu)
    with pytest.raises(error, match="q: "):
        attention.run(**given | {"out": None})
    assert launched(gpu) == []


def test_launches_of_a_layout_that_was_given_up_are_not_repeated(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold addresses that nobody renews when the buffers move."""

    def run(wider: int) -> None:
        q = TorchTensor(Q_SHAPE, 1 << 40, strides=(1024 + 8 * wider, HEAD_DIM, 1))
        attention.run(**tensors(ROWS, q=q), stream=STREAM)

    attention = layer()
    plan(attention)
    for wider in (*range(_MOST_LAYOUTS), 0):
        run(wider)
    with monkeypatch.context() as broken:
        broken.setattr(launcher_module, "argument_block", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            run(_MOST_LAYOUTS)  # in place of the first
    launched(gpu)
    plan(attention, ([0, 1, ROWS], [6000, 6000]))  # takes more room
    run(0)
    (launch,) = launched(gpu)
    assert is_of(launch, attention.current_plan)
