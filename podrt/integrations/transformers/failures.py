"""A step that podrt cannot plan or run: its requests fail, the engine and all others go on."""

from __future__ import annotations

import logging
from typing import Any

from transformers.generation.continuous_batching.requests import RequestStatus

_log = logging.getLogger("podrt")


class StepError(RuntimeError):
    """A step of continuous batching could not be planned, or one of its layers not be run."""


def guard_steps(processor: Any) -> None:
    """Let a `ContinuousBatchProcessor` survive a `StepError`, which would end its loop."""
    step = processor._generation_step

    def guarded_step(model: Any) -> None:
        try:
            step(model)
        except StepError as error:
            _log.error("%s; its requests fail", error, exc_info=True)
            _fail_requests(processor, error)

    processor._generation_step = guarded_step


def _fail_requests(processor: Any, error: StepError) -> None:
    """Deliver the requests of a step as failed, and leave an empty step to the engine's update.

    Where steps overlap, the one before is still to be updated, and then this one: the pairs of
    inputs are swapped as after a step that went well.
    """
    ios = processor.inputs_and_outputs
    overlaps = hasattr(ios, "io_pairs")
    prepared = ios.io_pairs[ios.current_pair].host_io if overlaps else ios
    for request in prepared.requests_in_batch:
        state = request.state
        if state.status >= RequestStatus.FINISHED:
            continue  # by the step before, which was updated after this one was scheduled
        processor._handle_request_error(error, state)
        processor.scheduler.finish_request(state.request_id)
        state.status = RequestStatus.FINISHED  # the update of the step before skips these
    prepared.requests_in_batch, prepared.num_request_in_batch = [], 0
    prepared.req_id_to_new_token_position = {}
    if overlaps:
        ios.swap_io_pairs()
