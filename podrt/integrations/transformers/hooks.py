"""What is changed of a manager of continuous batching: methods of its instances, never classes.

A step of the engine is ``prepare_next_batch``, then ``get_model_kwargs``, then the model's forward
pass, eagerly or as the replay of a CUDA graph, which skips Python. So the plan is made in
``get_model_kwargs``; graphs read it on the device (`HybridAttention.reserve`). In the forward pass
every layer gives its new keys and values to the cache's ``update``, and what that returns to the
attention function, which writes them: both launches of a layer are asked for in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from podrt.integrations.transformers.caches import all_layers_full
from podrt.integrations.transformers.engine import Engine
from podrt.integrations.transformers.failures import StepError, guard_steps
from podrt.integrations.transformers.masks import without_masks

#: Key of the model's keyword arguments by which attention functions find the engine.
ENGINE = "podrt"


def attach(
    manager: Any, make_engine: Callable[[Any], Engine], require_enabled: Callable[[], None]
) -> None:
    """Have a manager's batch processors run on podrt, those that it makes from now on.

    Parameters
    ----------
    manager : ContinuousBatchingManager
    make_engine : callable
        From a `ContinuousBatchProcessor`.
    require_enabled : callable
        Raises once podrt is disabled: the engine's own attention would miss keys.
    """
    if getattr(manager, "_podrt_attached", False):
        return
    create = manager._create_batch_processor

    def create_batch_processor() -> Any:
        require_enabled()
        with all_layers_full(manager):
            processor = create()
        _wait_for_resets(processor.model_device)
        if not hasattr(processor, "_podrt_engine"):
            processor._podrt_engine = make_engine(processor)
            _hook(processor, processor._podrt_engine)
        return processor

    manager._create_batch_processor = create_batch_processor
    manager._podrt_attached = True


def _wait_for_resets(device: Any) -> None:
    """Wait until a processor that was made, or reset, has cleared its inputs on the GPU.

    It does so on the current stream, for which its own streams do not wait: the first batch was
    sometimes copied before, and lost which rows to take logits of. Where that batch has a graph to
    be captured first, as the engine's own attention has, this takes long enough.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _hook(processor: Any, engine: Engine) -> None:
    ios, runner = processor.inputs_and_outputs, processor.model_runner
    get_model_kwargs, maybe_pad_inputs = ios.get_model_kwargs, runner.maybe_pad_inputs
    compute_batch = runner.compute_batch

    def planned_model_kwargs(use_padding: bool = False) -> Any:
        kwargs = get_model_kwargs(use_padding=use_padding)
        requests = _host_side(ios).requests_in_batch
        try:
            if requests:  # none: the engine describes itself
                engine.plan(requests, ios.compute_stream)
        except Exception as error:
            raise StepError(f"podrt could not plan a step: {error}") from error
        kwargs[ENGINE] = engine
        return kwargs

    def padded_inputs(num_q_tokens: int, max_kv_read: int, use_decode_fast_path: bool) -> Any:
        """Pad queries alone; with no keys to read the engine makes no list of them."""
        padded, _ = maybe_pad_inputs(num_q_tokens, max_kv_read, use_decode_fast_path)
        return padded, 0

    def compute_batch_without_masks(model: Any, batch_data: Any) -> None:
        with without_masks():
            compute_batch(model, batch_data)

    def leave_to_attention(
        key_states: Any, value_states: Any, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Gather no keys; the attention function writes those that it is given, and reads all."""
        return key_states, value_states

    processor.cache.update = leave_to_attention
    ios.get_model_kwargs = planned_model_kwargs
    runner.maybe_pad_inputs = padded_inputs
    runner.compute_batch = compute_batch_without_masks
    guard_steps(processor)
    for io in _with_graphs(ios):
        # Whatever the batch, a graph depends on how many rows its tensors have.
        io._get_graph_key = lambda io=io: (io.num_q_tokens,)


def _host_side(ios: Any) -> Any:
    """Return what holds the requests of the step: the one pair in use, if batches overlap."""
    pairs = getattr(ios, "io_pairs", None)
    return ios if pairs is None else pairs[ios.current_pair].host_io


def _with_graphs(ios: Any) -> list[Any]:
    """Return those that keep graphs."""
    pairs = getattr(ios, "io_pairs", None)
    return [ios] if pairs is None else [pair.device_io for pair in pairs]
