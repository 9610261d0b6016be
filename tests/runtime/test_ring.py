"""The upload ring: staging memory is written again only after the copy has read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu

from podrt.runtime import ring as ring_module
from podrt.runtime.ring import UploadRing

STREAM, OTHER = 7, 8


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


def send(ring: UploadRing, values: bytes, pointer: int, stream: int = STREAM) -> None:
    slot = ring.slot(len(values))
    slot.bytes[: len(values)] = np.frombuffer(values, np.uint8)
    ring.send(slot, len(values), pointer, stream)


def number(at: int) -> bytes:
    return at.to_bytes(8, "little")


def test_copies_that_are_made_late_find_what_was_written_for_them(gpu: FakeGpu) -> None:
    ring: Any = UploadRing(gpu)  # type: ignore[arg-type]
    memory = gpu.allocate(8 * 100, STREAM)
    for at in range(100):
        send(ring, number(at), memory.pointer + 8 * at)
    gpu.finish()
    got = np.frombuffer(gpu.read(memory.pointer, 800), np.int64)
    np.testing.assert_array_equal(got, np.arange(100))


def test_a_stream_that_lags_does_not_lose_its_copies_to_one_that_does_not(gpu: FakeGpu) -> None:
    ring = UploadRing(gpu)  # type: ignore[arg-type]
    memory = gpu.allocate(16 * 60, STREAM)
    for at in range(60):
        send(ring, number(at), memory.pointer + 16 * at, STREAM)
        send(ring, number(-at % 99), memory.pointer + 16 * at + 8, OTHER)
        gpu.finish(OTHER)
    gpu.finish()
    got = np.frombuffer(gpu.read(memory.pointer, 960), np.int64).reshape(60, 2)
    np.testing.assert_array_equal(got[:, 0], np.arange(60))
    np.testing.assert_array_equal(got[:, 1], -np.arange(60) % 99)


def test_a_host_that_does_not_run_ahead_needs_no_more_slots(gpu: FakeGpu) -> None:
    ring = UploadRing(gpu)  # type: ignore[arg-type]
    memory = gpu.allocate(8, STREAM)
    for at in range(500):
        send(ring, number(at), memory.pointer)
        gpu.finish()
    assert ring.num_slots == ring_module._FIRST_SLOTS
    assert gpu.allocations == 1 + ring.num_slots


def test_slots_have_a_bound_at_which_the_oldest_copy_is_waited_for(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "_MOST_SLOTS", 32)
    ring = UploadRing(gpu)  # type: ignore[arg-type]
    memory = gpu.allocate(8 * 100, STREAM)
    waited = []
    finish_all = gpu.wait

    def wait(event: Any) -> None:
        waited.append(event.pending)
        finish_all(event)

    monkeypatch.setattr(gpu, "wait", wait)
    for at in range(100):
        send(ring, number(at), memory.pointer + 8 * at)
        assert ring.num_slots <= 32
    assert waited == [1, 1, 1]  # a wait of the fake one does all work
    gpu.finish()
    got = np.frombuffer(gpu.read(memory.pointer, 800), np.int64)
    np.testing.assert_array_equal(got, np.arange(100))


def test_slots_grow_with_what_they_carry(gpu: FakeGpu) -> None:
    ring = UploadRing(gpu)  # type: ignore[arg-type]
    large = bytes(range(256)) * 300
    memory = gpu.allocate(len(large), STREAM)
    send(ring, large, memory.pointer)
    send(ring, b"small", memory.pointer)
    gpu.finish()
    assert gpu.read(memory.pointer, len(large)) == b"small" + large[5:]


def test_a_slot_that_is_not_sent_is_not_lost(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = UploadRing(gpu)  # type: ignore[arg-type]
    memory = gpu.allocate(8, STREAM)
    send(ring, number(1), memory.pointer)
    before = ring.num_slots
    ring.slot(8)  # and its user fails
    with monkeypatch.context() as broken:
        broken.setattr(gpu, "upload", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            send(ring, number(2), memory.pointer)
    assert ring.num_slots == before
    send(ring, number(3), memory.pointer)
    gpu.finish()
    assert gpu.read(memory.pointer, 8) == number(3)


def test_a_slot_whose_event_cannot_be_recorded_is_not_written_again(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring: Any = UploadRing(gpu)  # type: ignore[arg-type]
    memory = gpu.allocate(8 * 40, STREAM)

    def refuse(*_: object) -> None:
        raise RuntimeError("no event")

    with monkeypatch.context() as patch:
        patch.setattr(gpu, "record", refuse)
        with pytest.raises(RuntimeError, match="no event"):
            send(ring, number(1000), memory.pointer)
    for at in range(1, 40):
        send(ring, number(at), memory.pointer + 8 * at)
    gpu.finish()
    got = np.frombuffer(gpu.read(memory.pointer, 320), np.int64)
    np.testing.assert_array_equal(got, [1000, *range(1, 40)])
