"""The stream that a plan is copied on."""

from __future__ import annotations

from typing import Any

from podrt.runtime.session import Session
from podrt.tensors.frameworks import Framework
from podrt.tensors.streams import current_stream_of, resolve_stream
from podrt.tensors.view import TensorView


def stream_of_plan(
    session: Session, stream: Any, last: Framework | None, *tensors: TensorView | None
) -> int | None:
    """Return the handle of the stream to copy a plan on; None if nothing tells.

    Parameters
    ----------
    session : Session
        Where the plan goes. Its GPU is current.
    stream : stream or None
        The caller's choice.
    last : Framework or None
        What the tensors of the last run came from.
    *tensors : TensorView or None
        What the caller passed; those on a GPU tell whose current stream None means.

    Raises
    ------
    RuntimeError
        The stream is being captured.
    """
    if stream is not None:
        handle = resolve_stream(stream)
    else:
        framework = last
        for tensor in tensors:
            if tensor is not None and tensor.device is not None:
                framework = tensor.framework
                break
        if framework is not None:
            handle = current_stream_of(framework, session.driver.ordinal)
        elif session.reservation is not None:
            handle = session.reservation.stream
        else:
            return None
    if session.driver.is_capturing(handle):
        raise RuntimeError(
            "the stream is being captured into a CUDA graph, which would copy this very plan at "
            "every replay: call plan() and reserve() before the capture, and run() inside it"
        )
    return handle
