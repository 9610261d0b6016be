"""Which workspace a launch uses: one for each stream, and one for each capture into a graph.

A graph may be replayed at any time, so what it reads is touched by nobody else: not by later plans,
not by ordinary runs on the same stream, not by other graphs.
"""

from __future__ import annotations

from collections.abc import Hashable

from podrt.runtime.driver import Driver, uncaptured
from podrt.runtime.planned import Planned
from podrt.runtime.ring import UploadRing
from podrt.runtime.workspace import Workspace

#: Streams whose workspaces are kept, the longest unused given up first.
MOST_STREAMS = 16


class Workspaces:
    """The workspaces of one `HybridAttention`."""

    def __init__(self, driver: Driver, value_dim: int) -> None:
        self._driver, self._value_dim = driver, value_dim
        self._ring = UploadRing(driver)
        self._by_stream: dict[Hashable, Workspace] = {}
        self._captured: dict[Hashable, Workspace] = {}

    def new(self) -> Workspace:
        """Return a workspace that is nobody's yet."""
        return Workspace(self._driver, self._ring, self._value_dim)

    def ready(self, planned: Planned, stream: int, *, may_be_captured: bool = True) -> Workspace:
        """Return a workspace that holds the plan, in the order of a stream."""
        capture = self._driver.capture_of(stream) if may_be_captured else None
        if capture is not None:
            return self._ready_for_capture(planned, (capture, stream, id(planned)))
        workspace = self._of_stream(self._driver.stream_key(stream))
        workspace.load(planned, stream)
        return workspace

    def keep(self, workspace: Workspace) -> None:
        """Keep one that graphs have been captured with, though its reservation ends."""
        self._captured[id(workspace)] = workspace

    def release_streams(self) -> None:
        """Give back those of ordinary runs."""
        self._by_stream.clear()

    def release_captured(self) -> None:
        """Give back what graphs captured so far would read."""
        self._captured.clear()

    def _of_stream(self, key: Hashable) -> Workspace:
        workspace = self._by_stream.pop(key, None)
        if workspace is None:
            workspace = self.new()
            while len(self._by_stream) >= MOST_STREAMS:
                # Its memory goes to the pool that it came from, where only its stream finds it.
                self._by_stream.pop(next(iter(self._by_stream)))
        self._by_stream[key] = workspace  # now the last to be given up
        return workspace

    def _ready_for_capture(self, planned: Planned, key: Hashable) -> Workspace:
        """Prepare outside of the graph, on a stream of its own, what the graph will read."""
        if key not in self._captured:
            with uncaptured():
                private = self._driver.private_stream()
                workspace = self.new()
                workspace.load(planned, private.ptr)  # keeps `planned` alive, and so its number
                private.synchronize()
            self._captured[key] = workspace
        return self._captured[key]
