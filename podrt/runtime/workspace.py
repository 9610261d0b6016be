"""Device memory of the launches of one stream: the plan, counters and partial results.

Launches of one stream run in order and may share these; launches of different streams may not.
"""

from __future__ import annotations

from podrt.kernels.arguments import PLAN_BYTES_AT_LEAST, PLAN_HEADER_BYTES, Buffers
from podrt.runtime.driver import Driver, Memory
from podrt.runtime.launcher import Launchers
from podrt.runtime.planned import Planned
from podrt.runtime.ring import UploadRing
from podrt.runtime.scratch import counter_bytes, place, scratch_bytes

_EMPTY = Memory(0, 0, None)


class Workspace:
    """Buffers that grow as plans need, or are fixed, and are written in stream order.

    Parameters
    ----------
    driver : Driver
        The GPU.
    ring : UploadRing
        What plans are copied through.
    value_dim : int
        Elements of a row of partial results.
    """

    def __init__(self, driver: Driver, ring: UploadRing, value_dim: int) -> None:
        self._driver, self._ring, self._value_dim = driver, ring, value_dim
        self._plan, self._scratch = _EMPTY, _EMPTY
        self._partial_rows = -1  # that find room
        self._is_fixed = False
        self.is_captured = False  # by a graph, which may be replayed at any time
        self.launchers = Launchers()
        self.planned: Planned | None = None

    @property
    def buffers(self) -> Buffers:
        """Addresses for the kernels."""
        scratch = place(self._scratch.pointer, self._scratch.nbytes, self._value_dim)
        return Buffers(
            plan=self._plan.pointer,
            partial_o=scratch.partial_o,
            partial_lse=scratch.partial_lse,
            counters=scratch.counters,
            merge_counters=scratch.merge_counters,
        )

    @property
    def plan_address(self) -> int:
        """Where the plan lies."""
        return self._plan.pointer

    def fix(self, plan_bytes: int, scratch: Memory | int, stream: int) -> None:
        """Take all memory now and never again, so that graphs may hold its addresses.

        Parameters
        ----------
        plan_bytes : int
            Room for plans.
        scratch : Memory or int
            Memory that the caller brings, or bytes to allocate.
        stream : int
            Counters become zero, and the plan an empty one, in the order of this stream.
        """
        self._plan = self._driver.allocate(max(plan_bytes, PLAN_BYTES_AT_LEAST), stream)
        self._take_scratch(
            self._driver.allocate(scratch, stream) if isinstance(scratch, int) else scratch, stream
        )
        self._driver.clear(self._plan.pointer, PLAN_HEADER_BYTES, stream)
        self._is_fixed = True

    def load(self, planned: Planned, stream: int) -> None:
        """Copy a plan here in the order of a stream, unless it is here already."""
        if self.planned is planned:
            return
        self.planned = None  # until the copy has been asked for
        nbytes = planned.nbytes
        rows = planned.plan.partial_rows * planned.plan.spec.num_kv_heads
        if nbytes > self._plan.nbytes or rows > self._partial_rows:
            self._make_room(nbytes, rows, stream)
        slot = self._ring.slot(nbytes)
        planned.write(slot.bytes, self._plan.pointer)
        self._ring.send(slot, nbytes, self._plan.pointer, stream)
        self.planned = planned

    def _make_room(self, plan_bytes: int, rows: int, stream: int) -> None:
        if self._is_fixed:
            raise AssertionError(f"a plan of {plan_bytes} bytes and {rows} partial rows")
        self.launchers.clear()  # they hold the addresses
        if plan_bytes > self._plan.nbytes:
            room = max(_with_slack(plan_bytes), PLAN_BYTES_AT_LEAST)
            self._plan = self._driver.allocate(room, stream)
        scratch = scratch_bytes(rows, self._value_dim)
        if scratch > self._scratch.nbytes:
            self._take_scratch(self._driver.allocate(_with_slack(scratch), stream), stream)

    def _take_scratch(self, memory: Memory, stream: int) -> None:
        self._driver.clear(memory.pointer, counter_bytes(memory.nbytes), stream)
        self._scratch = memory
        self._partial_rows = place(0, memory.nbytes, self._value_dim).rows


def _with_slack(nbytes: int) -> int:
    """Half as much again, so that slowly growing batches do not allocate every time."""
    return nbytes + nbytes // 2
