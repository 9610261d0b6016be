"""Page-locked slots through which plans reach the GPU without anybody waiting.

An asynchronous copy reads its source when the stream gets there, so a slot may be written again
only after that. Each slot has an event that says when; if none is free, there will be one more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from podrt.runtime.driver import Driver, Event, Pinned

#: A host that is so many copies ahead of its GPU waits for the oldest.
_MOST_SLOTS = 256
_LEAST_SLOT_BYTES = 16384


@dataclass
class _Slot:
    memory: Pinned
    event: Event


class UploadRing:
    """Copies small pieces of host memory to a GPU in the order of any stream."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._slots: list[_Slot] = []
        self._next = 0

    @property
    def num_slots(self) -> int:
        """Slots so far."""
        return len(self._slots)

    def upload(self, parts: Sequence[npt.NDArray[np.uint8]], pointer: int, stream: int) -> None:
        """Copy byte arrays, one after the other, to `pointer`; they may be changed at once."""
        nbytes = sum(map(len, parts))
        slot = self._free_slot(nbytes)
        at, to = 0, slot.memory.bytes
        for part in parts:
            to[at : at + len(part)] = part
            at += len(part)
        self._driver.upload(pointer, slot.memory.address, nbytes, stream)
        self._driver.record(slot.event, stream)

    def _free_slot(self, nbytes: int) -> _Slot:
        """Return a slot of at least so many bytes that nothing is being copied from."""
        slots = self._slots
        if slots and self._driver.has_happened(slots[self._next].event):
            slot = slots[self._next]
        elif len(slots) < _MOST_SLOTS:
            slot = _Slot(self._pinned(nbytes), self._driver.event())
            slots.insert(self._next, slot)
        else:
            slot = slots[self._next]
            self._driver.wait(slot.event)
        self._next = (self._next + 1) % len(slots)
        if len(slot.memory.bytes) < nbytes:
            slot.memory = self._pinned(nbytes)
        return slot

    def _pinned(self, nbytes: int) -> Pinned:
        return self._driver.allocate_pinned(max(nbytes + nbytes // 2, _LEAST_SLOT_BYTES))
