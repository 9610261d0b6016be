"""Page-locked slots through which plans reach the GPU without anybody waiting.

An asynchronous copy reads its source when the stream gets there, so a slot may be written again
only after that. Each slot has an event that says when. Slots known to be free are taken in turn;
once there are none, all are asked at once, which is cheaper than one each time; if none is free by
then, there will be more.
"""

from __future__ import annotations

from collections import deque

from podrt.runtime.driver import Driver, Event, Pinned

#: A host that is so many copies ahead of its GPU waits for the oldest.
_MOST_SLOTS = 256
_FIRST_SLOTS = 16
_LEAST_SLOT_BYTES = 16384


class Slot:
    """Staging memory of one copy.

    Attributes
    ----------
    bytes : uint8 array
        To be written before the copy is asked for, and not after.
    """

    __slots__ = ("address", "bytes", "event", "memory")

    def __init__(self, memory: Pinned, event: Event) -> None:
        self.hold(memory)
        self.event = event

    def hold(self, memory: Pinned) -> None:
        """Take other memory."""
        self.memory, self.bytes, self.address = memory, memory.bytes, memory.address


class UploadRing:
    """Copies small pieces of host memory to a GPU in the order of any stream."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: deque[Slot] = deque()
        self._used: deque[Slot] = deque()  # the oldest first
        self._unknown: list[Slot] = []  # whose memory must stay

    @property
    def num_slots(self) -> int:
        """Slots so far."""
        return len(self._free) + len(self._used)

    def slot(self, nbytes: int) -> Slot:
        """Return the slot to be written and sent next, of at least so many bytes."""
        if not self._free:
            self._find_free()
        slot = self._free[0]  # and it stays there, should the caller fail
        if len(slot.bytes) < nbytes:
            slot.hold(self._pinned(nbytes))
        return slot

    def send(self, slot: Slot, nbytes: int, pointer: int, stream: int) -> None:
        """Copy the first bytes of a slot to `pointer`, in the order of a stream."""
        driver = self._driver
        driver.upload(pointer, slot.address, nbytes, stream)
        self._free.popleft()
        try:
            driver.record(slot.event, stream)
        except Exception:
            self._unknown.append(slot)  # nothing will tell when its copy has been made
            raise
        self._used.append(slot)

    def _find_free(self) -> None:
        """Take back the slots whose copies have been made; make more if there are none."""
        events = [slot.event for slot in self._used]
        for slot, is_done in zip(
            tuple(self._used), self._driver.have_happened(events), strict=True
        ):
            if is_done:
                self._used.remove(slot)
                self._free.append(slot)
        if self._free:
            return
        if self.num_slots >= _MOST_SLOTS:
            oldest = self._used.popleft()
            self._driver.wait(oldest.event)
            self._free.append(oldest)
            return
        for _ in range(max(_FIRST_SLOTS, self.num_slots)):
            self._free.append(Slot(self._pinned(0), self._driver.event()))

    def _pinned(self, nbytes: int) -> Pinned:
        return self._driver.allocate_pinned(max(nbytes + nbytes // 2, _LEAST_SLOT_BYTES))
