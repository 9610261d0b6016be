"""The short way through `run`, for tensors like those of the last call that took the long way.

A model calls `run` once for each layer, with tensors that differ in their addresses alone. Those
are compared with the last ones and handed to prepared launches. Anything unlike takes the long way,
where everything is checked; so nothing is refused here.
"""

from __future__ import annotations

from typing import Any

from podrt.runtime.driver import Driver
from podrt.runtime.launcher import LaunchersByKernel, Steps
from podrt.runtime.planned import Planned
from podrt.runtime.workspace import Workspace
from podrt.tensors.checks import ALIGNMENT_BYTES
from podrt.tensors.frameworks import Framework
from podrt.tensors.likeness import Address, Addresses, address_if_like, addresses_if_like
from podrt.tensors.run_tensors import RunTensors
from podrt.tensors.streams import LEGACY_STREAMS, current_stream_getter, resolve_stream


class Repeat:
    """Launches of a planned batch over tensors like those of one run, on one stream.

    Attributes
    ----------
    workspace : Workspace
        What the launches use.
    tensors : RunTensors
        How the tensors lie; none of them is kept alive.
    prepared : LaunchersByKernel
        The workspace's launchers for tensors that lie so.
    has_sinks : bool
        Whether the run had some.
    stream : int
        Handle of the stream.
    steps : Steps
        What is launched.
    planned : Planned or None
        The batch of which they are; runs compute it only as long as it is the workspace's.
    least_rows, most_rows : int
        Rows that q may have.
    has_checked_pages : bool
        Whether `check_pages` has been called since `aim`.
    """

    def __init__(
        self,
        driver: Driver,
        workspace: Workspace,
        stream: int,
        tensors: RunTensors,
        prepared: LaunchersByKernel,
        addresses: Addresses,
        sinks_address: Address | None,
    ) -> None:
        self.workspace, self.tensors = workspace, tensors.described()
        self.prepared = prepared
        self._driver, self._addresses = driver, addresses
        self._sinks_address, self.has_sinks = sinks_address, sinks_address is not None
        self.stream, self._stream_key = stream, driver.stream_key(stream)
        self._framework: Framework = tensors.q.framework
        self._current_stream = current_stream_getter(self._framework)
        self._q_type, self._value_dim = type(tensors.q.owner), tensors.out.shape[2]
        self.steps: Steps = ()
        self.planned: Planned | None = None
        self.least_rows = self.most_rows = 0
        self.has_checked_pages = False

    @classmethod
    def of(
        cls,
        driver: Driver,
        workspace: Workspace,
        stream: int,
        tensors: RunTensors,
        prepared: LaunchersByKernel,
    ) -> Repeat | None:
        """Return what repeats a run; None for frameworks that have no short way."""
        views = tensors.q, tensors.k_cache, tensors.v_cache, tensors.out
        addresses = addresses_if_like(*(view.owner for view in views))
        sinks = tensors.sinks
        sinks_address = None if sinks is None else address_if_like(sinks.owner)
        if addresses is None or (sinks is not None and sinks_address is None):
            return None
        return cls(driver, workspace, stream, tensors, prepared, addresses, sinks_address)

    def aim(self, planned: Planned, steps: Steps, least_rows: int, most_rows: int) -> None:
        """Launch these from now on, for queries of so many rows."""
        if self.tensors.q.shape[0] == 1:
            most_rows = 1  # a single row may have strides that would be wrong for more
        self.planned, self.steps = planned, steps
        self.least_rows, self.most_rows = least_rows, most_rows
        self.has_checked_pages = False

    def is_on(self, stream: int) -> bool:
        """Whether that is the handle of the run's stream, as it was before."""
        return stream == self.stream and self._driver.stream_key(stream) == self._stream_key

    def run(self, q: Any, k_cache: Any, v_cache: Any, out: Any, sinks: Any, stream: Any) -> Any:
        """Launch and return out, allocated if None; return None if anything is unlike."""
        planned = self.planned
        if planned is None or self.workspace.planned is not planned:
            return None
        at_sinks = self.address_of(sinks)
        if at_sinks < 0:
            return None
        handle = self._handle(stream)
        if handle < 0:
            return None
        if out is None:
            # Memory is allocated in the order of the current stream, perhaps not of this one.
            if stream is not None or type(q) is not self._q_type:
                return None
            out = _empty_out(q, self._value_dim, self._framework)
        found = self._addresses(q, k_cache, v_cache, out)
        if found is None:
            return None
        at_q, at_k, at_v, at_out, rows = found
        if not self.least_rows <= rows <= self.most_rows:
            return None
        # A null pointer is nothing's address, but that of an empty tensor.
        if (at_q | at_k | at_v | at_out) % ALIGNMENT_BYTES or not (at_q and at_k and at_v):
            return None
        if not self.has_checked_pages:
            self.check_pages(planned)
        launch = self._driver.launch
        for point_to, shape, _ in self.steps:
            arguments = point_to(at_q, at_k, at_v, at_out, 0, at_sinks, rows)
            launch(*shape, handle, arguments, 0)
        return out

    def address_of(self, sinks: Any) -> int:
        """Return the address of sinks, 0 for None as in the run that is repeated; -1 if unlike."""
        address = self._sinks_address
        if sinks is None:
            return 0 if address is None else -1
        return (address and address(sinks)) or -1

    def check_pages(self, planned: Planned) -> None:
        """Raise ValueError if a planned batch has pages that the cache has not."""
        planned.require_pages_exist(self.tensors.k_cache.shape[0])
        self.has_checked_pages = True

    def _handle(self, stream: Any) -> int:
        """Return the handle of the run's stream; -1 unless it is this one's, as it was before."""
        driver, current = self._driver, self._current_stream
        handle = current(driver.ordinal) if stream is None else resolve_stream(stream)
        if handle != self.stream or not driver.is_current():
            return -1
        if handle in LEGACY_STREAMS:
            return handle
        if driver.is_capturing(handle) or driver.stream_key(handle) != self._stream_key:
            return -1
        return handle


def _empty_out(q: Any, value_dim: int, framework: Framework) -> Any:
    """Allocate a row-major output on the framework's current stream."""
    rows, heads, _ = q.shape
    shape = rows, heads, value_dim  # PyTorch takes half as long again over a Size of its own
    if framework == "torch":
        return q.new_empty(shape)
    import cupy

    return cupy.empty(shape, q.dtype)
