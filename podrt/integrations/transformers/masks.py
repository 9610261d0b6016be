"""Which keys are padding, told once a forward pass; what is more than padding is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, flash_attention_mask

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

    None where all are keys. A static cache has more rows than keys so far, which the mask of
    FlashAttention tells only of padded batches.

    Raises
    ------
    UnsupportedConfigError
        The mask is another than the causal one, as of windows, chunks and packed sequences.
    """
    if not _of_thread.needs_masks:
        return None
    if mask_function is not causal_mask_function or kv_offset:
        raise UnsupportedConfigError(
            "attention_mask: is more than causal attention with padding (a window, chunks, packed "
            "sequences or a function of its own), which is all that podrt serves"
        )
    found = flash_attention_mask(
        batch_size, q_length, kv_length, q_offset, attention_mask=attention_mask, **arguments
    )
    num_keys = int(q_offset) + q_length
    if found is None and num_keys < kv_length:
        found = torch.ones(batch_size, num_keys, dtype=torch.bool, device=arguments.get("device"))
    return found
