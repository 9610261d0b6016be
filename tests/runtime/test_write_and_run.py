"""A write and a run in one call: the launches of both, and only for tensors like the last ones."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fake_gpu import FakeGpu  # noqa: E402
from runtime_support import (  # noqa: E402
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    PAGE_SIZE,
    STREAM,
    is_of,
    launched,
    layer,
    reserved,
)
from torch_on_fake_gpu import install_for_torch  # noqa: E402

import podrt  # noqa: E402
from podrt.runtime.write_and_run import WriteAndRun  # noqa: E402

ROWS = 6
PAGES = 40
SINKS = torch.zeros(HEADS)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install_for_torch(monkeypatch)


def new(rows: int, heads: int, form: str = "tokens first") -> Any:
    tensor = torch.zeros(rows, heads, HEAD_DIM, dtype=torch.float16)
    return tensor.transpose(0, 1)[None] if form == "as models" else tensor


def tensors(rows: int = ROWS, form: str = "tokens first", pages: int = PAGES) -> dict[str, Any]:
    """What a layer of an engine has."""
    cache = torch.zeros(2, pages, PAGE_SIZE, KV_HEADS, HEAD_DIM, dtype=torch.float16)
    return {
        "q": new(rows, HEADS, form),
        "k": new(rows, KV_HEADS, form),
        "v": new(rows, KV_HEADS, form),
        "k_cache": cache[0],
        "v_cache": cache[1],
        "slots": torch.arange(rows),
        "out": None if form == "as models" else new(rows, HEADS),
    }


def plan(attention: podrt.HybridAttention, rows: int = ROWS, keys: int = 100) -> None:
    table = [[7 + request for _ in range(20)] for request in range(rows)]
    attention.plan(list(range(rows + 1)), [keys] * rows, block_table=table, stream=STREAM)


def both(attention: podrt.HybridAttention, given: dict[str, Any], sinks: Any = None) -> Any:
    """Call both, with views as an engine takes them."""
    q, k, v = (x[0].transpose(0, 1) if x.ndim == 4 else x for x in (given[n] for n in "qkv"))
    podrt.write_cache(k, v, given["k_cache"], given["v_cache"], given["slots"])
    return attention.run(q, given["k_cache"], given["v_cache"], out=given["out"], sinks=sinks)


def short_way(
    attention: podrt.HybridAttention, given: dict[str, Any], sinks: Any = None
) -> WriteAndRun:
    """Call both, and return what does so again."""
    both(attention, given, sinks)
    found = attention.write_and_run_like(*given.values())
    assert found is not None
    return found


def what_was_launched(gpu: FakeGpu, *but: str) -> list[Any]:
    found = []
    for x in launched(gpu):
        names = [n for n in x.arguments.dtype.names if n not in but]
        values = [x.arguments[n].tobytes() for n in names]
        found.append((x.variant, x.grid, x.stream, values))
    return found


@pytest.mark.parametrize("form", ["tokens first", "as models"])
@pytest.mark.parametrize("sinks", [None, SINKS], ids=["without sinks", "with sinks"])
def test_launches_are_those_of_both_calls(gpu: FakeGpu, form: str, sinks: Any) -> None:
    attention = layer()
    plan(attention)
    again = short_way(attention, tensors(form=form), sinks)
    launched(gpu)
    for _ in range(3):  # layers
        given = tensors(form=form)
        out = again(*given.values(), sinks)
        if form == "as models":
            assert out.shape == (1, ROWS, HEADS, HEAD_DIM) and out.is_contiguous()
            found = what_was_launched(gpu, "out")
            both(attention, given, sinks)
            assert what_was_launched(gpu, "out") == found
        else:
            assert out is given["out"]
            found = what_was_launched(gpu)
            both(attention, given, sinks)
            assert what_was_launched(gpu) == found
        assert len(found) == 2


@pytest.mark.parametrize("make", [layer, reserved])
def test_the_next_plan_is_run(gpu: FakeGpu, make: Callable[[], podrt.HybridAttention]) -> None:
    attention = make()
    plan(attention)
    again = short_way(attention, tensors())
    for rows, keys in ((ROWS, 101), (3, 250), (9, 31), (1, 300)):
        plan(attention, rows, keys)
        launched(gpu)
        assert again(*tensors(rows).values()) is not None
        write, run = launched(gpu)
        assert write.arguments["num_tokens"] == rows
        assert is_of(run, attention.current_plan)


def test_fewer_slots_than_rows_leave_padding_alone(gpu: FakeGpu) -> None:
    attention = reserved()
    plan(attention, 4)
    again = short_way(attention, tensors(8) | {"slots": torch.arange(4)})
    launched(gpu)
    assert again(*(tensors(8) | {"slots": torch.arange(3)}).values()) is not None
    assert launched(gpu)[0].arguments["num_tokens"] == 3


UNLIKE: dict[str, Callable[[], dict[str, Any]]] = {
    "rows that are not the plan's": lambda: tensors(ROWS + 1),
    "k with fewer rows": lambda: {"k": new(ROWS - 1, KV_HEADS)},
    "v with other heads": lambda: {"v": new(ROWS, KV_HEADS + 1)},
    "q of another type": lambda: {"q": new(ROWS, HEADS).bfloat16()},
    "q that lies otherwise": lambda: {"q": new(ROWS, 2 * HEADS)[:, ::2]},
    "no slots": lambda: {"slots": torch.arange(0)},
    "more slots than tokens": lambda: {"slots": torch.arange(ROWS + 1)},
    "slots of another type": lambda: {"slots": torch.arange(ROWS, dtype=torch.int32)},
    "another cache": lambda: {"k_cache": tensors(pages=PAGES + 1)["k_cache"]},
    "no output": lambda: {"out": None},
    "an output of more rows": lambda: {"out": new(ROWS + 1, HEADS)},
    "sinks": lambda: {"sinks": SINKS},
}


@pytest.mark.parametrize("case", UNLIKE)
def test_whatever_is_unlike_is_left_to_both_calls(gpu: FakeGpu, case: str) -> None:
    attention = layer()
    plan(attention)
    again = short_way(attention, tensors())
    launched(gpu)
    given = tensors() | UNLIKE[case]()
    assert again(*given.values()) is None
    assert not launched(gpu)
    assert again(*tensors().values()) is not None


def test_sinks_are_not_forgotten(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    again = short_way(attention, tensors(), SINKS)
    assert again(*tensors().values()) is None
    assert again(*tensors().values(), SINKS.double()) is None
    assert again(*tensors().values(), SINKS) is not None


def test_another_stream_and_a_captured_one_are_left_to_both_calls(gpu: Any) -> None:
    attention = reserved()
    plan(attention)
    again = short_way(attention, tensors())
    gpu.stream = 9
    assert again(*tensors().values()) is None
    gpu.stream = STREAM
    gpu.capturing[STREAM] = 1
    assert again(*tensors().values()) is None
    del gpu.capturing[STREAM]
    assert again(*tensors().values()) is not None


def test_the_legacy_stream_is_not_asked_for_its_capture(gpu: Any) -> None:
    gpu.stream, attention = 0, layer()
    table = [[7] * 20] * ROWS
    attention.plan(list(range(ROWS + 1)), [100] * ROWS, block_table=table, stream=0)
    again = short_way(attention, tensors())
    assert again(*tensors().values()) is not None


def test_a_thread_without_the_gpu_is_left_to_both_calls(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    again, found = short_way(attention, tensors()), []
    thread = threading.Thread(target=lambda: found.append(again(*tensors().values())))
    thread.start()
    thread.join()
    assert found == [None]


def test_it_ends_with_the_run_that_it_repeats(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    again = short_way(attention, tensors())
    both(attention, tensors(pages=PAGES + 1))  # is what is repeated from now on
    assert again(*tensors().values()) is None
    attention.reserve(8, 64, 1000, stream=STREAM)  # gives the memory of ordinary runs back
    assert again(*tensors().values()) is None


def test_page_numbers_of_every_plan_are_checked(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    again = short_way(attention, tensors())
    launched(gpu)
    table = [[PAGES] * 20] * ROWS
    attention.plan(list(range(ROWS + 1)), [100] * ROWS, block_table=table, stream=STREAM)
    with pytest.raises(ValueError, match=f"is {PAGES}, expected at least 0"):
        again(*tensors().values())
    assert not launched(gpu)


def test_strides_of_a_single_row_do_not_pass_for_those_of_more(gpu: FakeGpu) -> None:
    attention = reserved()
    plan(attention, 1)
    one = tensors(1) | {"k": new(2, KV_HEADS)[::2]}
    again = short_way(attention, one)
    assert again(*one.values()) is not None
    plan(attention, 2)
    assert again(*(tensors(2) | {"k": new(4, KV_HEADS)[::2]}).values()) is None


def test_nothing_repeats_a_run_that_was_captured(gpu: FakeGpu) -> None:
    attention = reserved()
    plan(attention)
    gpu.capturing[STREAM] = 1
    both(attention, tensors())
    assert attention.write_and_run_like(*tensors().values()) is None


def test_nothing_repeats_where_pytorch_compares_no_tensors(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = layer()
    plan(attention)
    both(attention, tensors())
    monkeypatch.setattr("podrt.runtime.write_and_run.torch_guard", lambda *examples: None)
    assert attention.write_and_run_like(*tensors().values()) is None


def test_a_run_over_other_tensors_is_not_repeated(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    both(attention, tensors())
    both(attention, tensors(pages=PAGES + 1))  # by another thread, in between
    assert attention.write_and_run_like(*tensors().values()) is None
    wide = new(ROWS, 2 * HEADS)[:, ::2]
    both(attention, tensors() | {"out": wide})
    assert attention.write_and_run_like(*(tensors() | {"out": None}).values()) is None


def test_caches_with_heads_before_tokens_are_left_to_both_calls(gpu: FakeGpu) -> None:
    attention = layer(kv_layout="HND")
    plan(attention)
    given = tensors()
    heads_first = [given[name].transpose(1, 2) for name in ("k_cache", "v_cache")]
    attention.run(given["q"], *heads_first, out=given["out"])
    assert attention.write_and_run_like(*given.values()) is None


def test_no_tensor_is_kept_alive(gpu: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    given = tensors()
    again = short_way(attention, given)
    assert again(*given.values()) is not None
    seen = [weakref.ref(tensor) for tensor in given.values()]
    given.clear()
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)
