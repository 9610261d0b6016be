"""The tensors of a run that takes the long way, checked for whatever could be wrong with them."""

from __future__ import annotations

from typing import Any

from podrt.runtime.planned import Planned
from podrt.runtime.session import Session
from podrt.tensors.frameworks import framework_of
from podrt.tensors.run_tensors import RunTensors, require_kernel_can_read, view_tensors


def checked_tensors(
    session: Session,
    planned: Planned,
    stream: int,
    inputs: tuple[Any, Any, Any],
    sinks: Any,
    out: Any,
    lse: Any,
    return_lse: bool,
) -> RunTensors:
    """View q, caches and sinks, take or allocate the outputs, and check them against a plan.

    Raises
    ------
    ValueError, TypeError
        A tensor does not fit the plan, or a page number in host memory is not one of the cache.
    RuntimeError
        An output would be allocated under capture.
    """
    if out is None or (return_lse and lse is None):
        require_outputs_last(inputs[0], is_captured=session.driver.is_capturing(stream))
    tensors = view_tensors(
        session.scheduler.spec,
        planned.batch,
        stream,
        *inputs,
        sinks=sinks,
        out=out,
        lse=lse,
        return_lse=return_lse,
        may_have_more_rows=session.reservation is not None,
    )
    require_kernel_can_read(tensors, session.driver.ordinal)
    planned.require_pages_exist(tensors.k_cache.shape[0])
    return tensors


def require_outputs_last(q: Any, *, is_captured: bool) -> None:
    """Refuse to allocate what a graph writes, but in PyTorch, whose graphs keep their memory."""
    if is_captured and framework_of(q) != "torch":
        raise RuntimeError(
            "out: would be allocated while the stream is being captured, and freed under the "
            "graph; allocate out (and lse) before the capture and pass them"
        )
