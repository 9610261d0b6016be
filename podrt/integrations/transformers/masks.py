"""Which keys are padding, told once a forward pass; what is more than padding is refused."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.masking_utils import (
    causal_mask_function,
    flash_attention_mask,
    sliding_window_causal_mask_function,
    sliding_window_overlay,
)

from podrt.errors import UnsupportedConfigError


class _OfThread(threading.local):
    needs_masks = True


_of_thread = _OfThread()


@contextmanager
def without_masks() -> Iterator[None]:
    """Make no masks in this thread: continuous batching has a plan in their place.

    transformers before 5.24 asks for them all the same, as if requests were packed sequences.
    """
    before, _of_thread.needs_masks = _of_thread.needs_masks, False
    try:
        yield
    finally:
        _of_thread.needs_masks = before


def seen_keys(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Any = None,
    **arguments: Any,
) -> Any:
    """Return which keys are no padding, as transformers' mask interface has it.

    None where all are keys. Windows are arguments of the layers. A static cache has more rows than
    keys so far, which the mask of FlashAttention tells only of padded batches.

    Raises
    ------
    UnsupportedConfigError
        The mask is another than the causal one and that of windows, as of chunks and packed
        sequences.
    """
    if not _of_thread.needs_masks:
        return None
    is_sliding = _is_sliding(mask_function)
    if not is_sliding and (mask_function is not causal_mask_function or kv_offset):
        raise UnsupportedConfigError(
            "attention_mask: is more than causal attention with a window and padding (chunks, "
            "packed sequences or a function of its own), which is all that podrt serves"
        )
    found = flash_attention_mask(
        batch_size, q_length, kv_length, q_offset, attention_mask=attention_mask, **arguments
    )
    num_keys = int(q_offset) + q_length
    if found is None and num_keys < kv_length:
        found = torch.ones(batch_size, num_keys, dtype=torch.bool, device=arguments.get("device"))
    return found


def _is_sliding(mask_function: Callable[..., Any]) -> bool:
    """Tell whether a function is a causal mask with a window, and nothing else."""
    if _code_of(mask_function) is not _SLIDING_MASK:
        return False
    parts = inspect.getclosurevars(mask_function).nonlocals.get("mask_functions", ())
    return len(parts) == 2 and (_code_of(parts[0]) is _WINDOW and parts[1] is causal_mask_function)


def _code_of(function: Callable[..., Any]) -> Any:
    return getattr(function, "__code__", None)


#: What transformers' functions are known by: they are made anew for every mask.
_SLIDING_MASK = _code_of(sliding_window_causal_mask_function(1))
_WINDOW = _code_of(sliding_window_overlay(1))
