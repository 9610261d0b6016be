"""Plans of decodes that grow on the GPU are those that `plan` would make of the longer batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, TorchTensor
from runtime_support import (
    LIMITS,
    NUM_PAGES,
    PAGE_SIZE,
    STREAM,
    capture,
    is_of,
    launched,
    layer,
    plan,
    replayed,
    reserved,
    table_of,
    tensors,
)

from podrt.errors import MissingKernelError
from podrt.kernels.growth import MOST_PAGES
from podrt.plan import GROWTH_STEP
from podrt.runtime import growth
from podrt.runtime.session import Session

#: The longest is a multiple of `GROWTH_STEP`.
LENGTHS = np.array([500, 33, 1199, 804, 64, 2096, 40], np.int32)
ROWS = len(LENGTHS)
INDPTR = list(range(ROWS + 1))
#: Of a list of pages in host memory, where each request has three entries to spare.
KV_INDPTR = np.cumsum([0, *(-(-LENGTHS // PAGE_SIZE) + 3)]).astype(np.int32)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches that were planned."""
    seen: list[Any] = []
    real = Session.plan

    def planned(self: Session, batch: Any, *args: Any) -> Any:
        seen.append(batch)
        return real(self, batch, *args)

    monkeypatch.setattr(Session, "plan", planned)
    return seen


def grown(attention: Any, lengths: np.ndarray, **options: Any) -> int:
    """Plan lengths twice, then grow as far as it goes; return by how many keys that was."""
    for less in (1, 0):
        plan(attention, (INDPTR, lengths - less), **options)
    if not attention.is_reserved:
        attention.run(**tensors(ROWS), stream=STREAM)
    steps = 0
    while attention.grow(stream=STREAM):
        steps += 1
    return steps


def fresh_plan(lengths: np.ndarray, make: Any = reserved, **options: Any) -> Any:
    attention = make(**options)
    plan(attention, (INDPTR, lengths))
    return attention.current_plan


@pytest.mark.parametrize("policy", ["auto", "serial"])
def test_replays_find_what_a_plan_of_the_longer_batch_would_be(
    gpu: FakeGpu, plans: list[Any], policy: str
) -> None:
    attention = reserved(policy=policy)
    graph = capture(gpu, attention, decodes_only=True)
    lengths, planned = LENGTHS.copy(), 0
    plan(attention, (INDPTR, lengths))
    for step in range(3 * GROWTH_STEP):
        lengths += 1
        if not attention.grow(stream=STREAM):
            plan(attention, (INDPTR, lengths))
            planned += 1
        before = len(plans)
        launch = replayed(gpu, graph)
        assert len(plans) == before
        assert is_of(launch, fresh_plan(lengths, policy=policy)), step
    assert planned <= 5  # a new batch twice, and one for each multiple of 16


def test_several_keys_at_once(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention, decodes_only=True)
    for less in (3, 0):
        plan(attention, (INDPTR, LENGTHS - less))
    assert attention.grow(3, stream=STREAM)
    assert attention.grow(4, stream=STREAM)
    assert is_of(replayed(gpu, graph), fresh_plan(LENGTHS + 7))
    assert not attention.grow(GROWTH_STEP - 7, stream=STREAM)
    assert is_of(replayed(gpu, graph), fresh_plan(LENGTHS + 7))


def test_runs_go_the_short_way_over_what_has_grown(gpu: FakeGpu, plans: list[Any]) -> None:
    attention = layer()
    for less in (1, 0):
        plan(attention, (INDPTR, LENGTHS - less))
    attention.run(**tensors(ROWS), stream=STREAM)
    repeat = attention._session.repeatable  # type: ignore[union-attr]
    before = len(plans)
    for _ in range(5):
        assert attention.grow(stream=STREAM)
        attention.run(**tensors(ROWS), stream=STREAM)
    assert attention._session.repeatable is repeat  # type: ignore[union-attr]
    assert len(plans) == before
    launches = launched(gpu)
    for more, launch in enumerate(launches):
        assert is_of(launch, fresh_plan(LENGTHS + more, layer))


def test_what_is_planned_is_what_it_has_grown_to(gpu: FakeGpu) -> None:
    attention = layer()
    steps = grown(attention, LENGTHS)
    assert steps == GROWTH_STEP - 1
    expected = fresh_plan(LENGTHS + steps, layer)
    assert attention.current_plan.decode.tobytes() == expected.decode.tobytes()
    assert attention.current_plan.decode_keys == sum(LENGTHS) + ROWS * steps
    launched(gpu)
    attention.run(**tensors(ROWS), stream=STREAM)
    (launch,) = launched(gpu)
    assert is_of(launch, expected)


def test_another_stream_gets_what_the_plan_has_grown_to(gpu: FakeGpu) -> None:
    attention = layer()
    for less in (1, 0):
        plan(attention, (INDPTR, LENGTHS - less))
    for stream in (8, STREAM):  # both hold the plan
        attention.run(**tensors(ROWS), stream=stream)
    assert not attention.grow(stream=8)
    assert attention.grow(stream=STREAM)
    launched(gpu)
    for stream in (8, STREAM, 8):
        attention.run(**tensors(ROWS), stream=stream)
    assert all(is_of(launch, fresh_plan(LENGTHS + 1, layer)) for launch in launched(gpu))


def plan_listed(attention: Any, less: int, pages: np.ndarray, **options: Any) -> None:
    """Plan so many keys less than `LENGTHS` over a list of pages in host memory."""
    given = {"kv_indptr": KV_INDPTR, "kv_indices": pages, "stream": STREAM} | options
    attention.plan(INDPTR, LENGTHS - less, **given)


def with_host_table(attention: Any) -> np.ndarray:
    """Plan `LENGTHS`, and before them, over random pages; return these."""
    rng = np.random.default_rng(1)
    pages = rng.integers(0, NUM_PAGES, KV_INDPTR[-1]).astype(np.int32)
    for less in (1, 0):
        plan_listed(attention, less, pages)
    return pages


def test_new_page_numbers_take_the_places_of_old_ones(gpu: FakeGpu) -> None:
    attention = reserved()
    graph = capture(gpu, attention, decodes_only=True)
    pages = with_host_table(attention)
    for step in range(1, 6):
        entries = {int(KV_INDPTR[step]) + 1: 7 * step, int(KV_INDPTR[step + 1]) - 1: 7 * step + 1}
        assert attention.grow(new_pages=entries, stream=STREAM)
        pages[list(entries)] = list(entries.values())
        launch = replayed(gpu, graph)
        found = gpu.read(int(launch.header["page_table"]), pages.nbytes)
        np.testing.assert_array_equal(np.frombuffer(found, np.int32), pages)
    table = attention._session.planned.page_table  # type: ignore[union-attr]
    np.testing.assert_array_equal(table.flat(), pages)


@pytest.mark.parametrize(
    "entries",
    [{-1: 0}, {1 << 20: 0}, {0: -1}, {0: NUM_PAGES}, dict.fromkeys(range(MOST_PAGES + 1), 0)],
)
def test_page_numbers_that_are_none_are_left_to_a_plan(gpu: FakeGpu, entries: Any) -> None:
    attention = layer()
    with_host_table(attention)
    attention.run(**tensors(ROWS), stream=STREAM)
    assert not attention.grow(new_pages=entries, stream=STREAM)
    assert attention.grow(new_pages={0: NUM_PAGES - 1}, stream=STREAM)


def test_page_numbers_given_before_a_run_are_checked_by_it(gpu: FakeGpu) -> None:
    attention = reserved()
    with_host_table(attention)
    assert attention.grow(new_pages={int(KV_INDPTR[2]): NUM_PAGES}, stream=STREAM)
    with pytest.raises(ValueError, match=f"page 0 of request 2 is {NUM_PAGES}"):
        attention.run(**tensors(ROWS), stream=STREAM)


def test_pages_that_were_not_looked_at_are_left_to_a_plan(gpu: FakeGpu) -> None:
    """Entries behind a request's keys may hold anything, until it grows into them."""
    attention = layer()
    width = -(-int(LENGTHS.max()) // PAGE_SIZE) + 2
    pages = np.zeros((ROWS, width), np.int32)
    pages[:, -1] = -1  # no page
    for less in (1, 0):
        plan(attention, (INDPTR, LENGTHS - less), block_table=pages)
    attention.run(**tensors(ROWS), stream=STREAM)
    assert not attention.grow(stream=STREAM)


def test_requests_do_not_grow_beyond_their_pages(gpu: FakeGpu) -> None:
    attention = layer()
    lengths = LENGTHS
    room = -(-int(lengths.max()) // PAGE_SIZE) * PAGE_SIZE
    table = table_of(ROWS)
    table.shape, table.strides = (ROWS, room // PAGE_SIZE), (room // PAGE_SIZE, 1)
    assert grown(attention, lengths, block_table=table) == room - lengths.max()
    with pytest.raises(ValueError, match="block_table gives request 5"):
        plan(attention, (INDPTR, lengths + room - lengths.max() + 1), block_table=table)


def test_requests_do_not_grow_beyond_what_was_reserved(gpu: FakeGpu) -> None:
    attention = reserved()
    longest = LIMITS["max_kv_len"] - 2
    assert longest % GROWTH_STEP < GROWTH_STEP - 3
    lengths = np.minimum(LENGTHS, longest)
    lengths[2] = longest
    assert grown(attention, lengths) == 2


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        (([0, 1, 41], [500, 90]), {}),
        (([0, 1, 2], [500, 90]), {"window_left": 100}),
        (([0, 1, 2], [500, 90]), {"tree_mask": True}),
        (([0, 1, 2], [500, 90]), {"deterministic": True}),
        (([0, 1, 1], [500, 90]), {}),
    ],
    ids=["prefill", "window", "tree", "deterministic", "a request without tokens"],
)
def test_what_more_moves_of_than_ends_is_left_to_a_plan(
    gpu: FakeGpu, batch: Any, options: dict[str, Any]
) -> None:
    attention = layer(**options)
    for _ in range(3):
        plan(attention, batch)
        attention.run(**tensors(batch[0][-1]), stream=STREAM)
        assert not attention.grow(stream=STREAM)


def test_a_contiguous_cache_is_left_to_a_plan(gpu: FakeGpu) -> None:
    attention = layer(page_size=None)
    for less in (1, 0):
        attention.plan([0, 1, 2], [501 - less, 91 - less], stream=STREAM)
    assert not attention.grow(stream=STREAM)


def test_nothing_grows_that_was_not_planned(gpu: FakeGpu) -> None:
    attention = layer()
    assert not attention.grow(stream=STREAM)
    plan(attention, (INDPTR, LENGTHS))
    assert not attention.grow(stream=STREAM)  # once: it may not come again
    attention.reserve(**LIMITS, stream=STREAM)
    assert not attention.grow(stream=STREAM)


def test_a_plan_that_could_not_be_copied_leaves_what_had_grown(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = layer()
    for less in (1, 0):
        plan(attention, (INDPTR, LENGTHS - less))
    attention.run(**tensors(ROWS), stream=STREAM)
    assert attention.grow(stream=STREAM)

    def fail(*_: Any) -> None:
        raise RuntimeError("no copy")

    with monkeypatch.context() as patch:
        patch.setattr(gpu, "upload", fail)
        with pytest.raises(RuntimeError, match="no copy"):
            plan(attention, (INDPTR, LENGTHS + 40))
    assert not attention.grow(stream=STREAM)
    launched(gpu)
    attention.run(**tensors(ROWS), stream=STREAM)
    (launch,) = launched(gpu)
    assert is_of(launch, fresh_plan(LENGTHS + 1, layer))


def test_a_stream_that_is_captured_is_refused(gpu: FakeGpu) -> None:
    attention = reserved()
    grown(attention, LENGTHS)
    gpu.capturing[STREAM] = 1
    with pytest.raises(RuntimeError, match="is being captured"):
        attention.grow(stream=STREAM)


@pytest.mark.parametrize(
    ("num_keys", "error", "message"),
    [
        (0, ValueError, "num_keys=0: must be at least 1"),
        (1.5, TypeError, "num_keys=1.5: expected an int"),
        (True, TypeError, "num_keys=True: expected an int"),
    ],
)
def test_growth_is_a_whole_number_of_keys(
    gpu: FakeGpu, num_keys: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        layer().grow(num_keys)


def test_a_numpy_integer_is_one(gpu: FakeGpu) -> None:
    attention = reserved()
    for less in (1, 0):
        plan(attention, (INDPTR, LENGTHS - less))
    assert attention.grow(np.int64(2), stream=STREAM)


def test_without_its_kernel_all_is_left_to_plans(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise MissingKernelError("in no cache")

    monkeypatch.setattr(growth, "load_grower", missing)
    for attention in (layer(), reserved()):
        assert grown(attention, LENGTHS) == 0


@pytest.mark.parametrize("is_new", [False, True], ids=["spare entry", "new page"])
def test_pages_that_a_run_has_not_seen_are_not_grown_into(gpu: FakeGpu, is_new: bool) -> None:
    """Though growth was asked for, and refused, before that run."""
    attention = layer()
    pages = np.zeros(KV_INDPTR[-1], np.int32)
    spare = int(KV_INDPTR[4]) + 4  # of 64 keys, which fill their pages
    if not is_new:
        pages[spare] = NUM_PAGES + 5
    for less in (2, 1, 0):
        plan_listed(attention, less, pages)
        if less == 1:
            attention.run(**tensors(ROWS), stream=STREAM)
    assert not attention.grow(GROWTH_STEP, stream=STREAM)
    attention.run(**tensors(ROWS), stream=STREAM)
    new_pages = {spare: NUM_PAGES + 9} if is_new else {}
    assert not attention.grow(new_pages=new_pages, stream=STREAM)


def test_what_was_prepared_is_adopted_again_as_it_was(gpu: FakeGpu) -> None:
    attention = layer()
    for less in (1, 0):
        plan(attention, (INDPTR, LENGTHS - less))
    attention.run(**tensors(ROWS), stream=STREAM)
    read = attention.read_batch(INDPTR, LENGTHS, block_table=table_of(ROWS))
    prepared = attention.prepare(*read, stream=STREAM)
    attention.adopt(prepared)
    assert attention.grow(3, stream=STREAM)
    attention.adopt(prepared)
    launched(gpu)
    attention.run(**tensors(ROWS), stream=STREAM)
    (launch,) = launched(gpu)
    assert is_of(launch, fresh_plan(LENGTHS, layer))


def test_tables_of_more_tokens_than_fit_32_bits(gpu: FakeGpu) -> None:
    attention = layer()
    table = table_of(1)
    table.shape, table.strides = (1, 1 << 27), (1 << 27, 1)
    for keys in (79, 80):
        plan(attention, ([0, 1], [keys]), block_table=table)
    attention.run(**tensors(1), stream=STREAM)
    assert attention.grow(stream=STREAM)


def test_growth_goes_to_the_stream_of_a_plan_that_names_none(gpu: FakeGpu) -> None:
    gpu.stream = 9
    attention = reserved()
    exact = TorchTensor((ROWS,), 1 << 39, "torch.int32")
    pages = np.zeros(KV_INDPTR[-1], np.int32)
    for less in (1, 0):
        plan_listed(attention, less, pages, device_kv_lens=exact, stream=None)
    gpu.finish()
    assert attention.grow()
    assert {stream for stream, _ in gpu.work} == {9}


def test_growth_before_a_run_leaves_the_short_way_where_nothing_is_to_be_checked(
    gpu: FakeGpu, plans: list[Any]
) -> None:
    attention = layer()
    for less in (2, 1):
        plan(attention, (INDPTR, LENGTHS - less))
    attention.run(**tensors(ROWS), stream=STREAM)
    plan(attention, (INDPTR, LENGTHS))
    planned = len(plans)
    assert attention.grow(stream=STREAM)
    attention.run(**tensors(ROWS), stream=STREAM)
    assert len(plans) == planned
