"""Tree masks as callers pass them: a word of bits for each query token, on host or GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.spec.batch import HybridBatch
from podrt.spec.mask import MOST_TREE_TOKENS, Mask
from podrt.tensors.checks import require_dtype, require_rank, require_unit_stride
from podrt.tensors.host import host_array, to_numpy
from podrt.tensors.view import TensorView, view


@dataclass(frozen=True, eq=False)
class TreeMask:
    """Words of a batch.

    Attributes
    ----------
    tensor : TensorView
        uint64 or int64 ``[at least total_tokens]``.
    host_values : uint64 array [total_tokens] or None
        A copy of the words where they lie in host memory.
    """

    tensor: TensorView
    host_values: npt.NDArray[np.uint64] | None


def read_tree_mask(
    words: Any, batch: HybridBatch, mask: Mask, device: int | None
) -> TreeMask | None:
    """Check and view the words of a tree mask; None stays None.

    Parameters
    ----------
    words : uint64 or int64 [at least total_tokens], or None
    batch : HybridBatch
        Lengths.
    mask : Mask
        That of the layer.
    device : int or None
        The GPU that will read them; None for the host.

    Raises
    ------
    ValueError, TypeError
        The layer has no tree mask, words are too few, lie elsewhere, are of another type, or are
        not 0 in a request of more than `MOST_TREE_TOKENS` tokens.
    """
    if words is None:
        return None
    if not mask.tree:
        raise ValueError(
            "tree_mask: given for a layer without one; pass tree_mask=True where the layer is made"
        )
    if isinstance(words, list | tuple):
        words = host_array(words, "tree_mask", "uint64")
    tensor = view(words, "tree_mask")
    require_rank(tensor, 1, "[total_tokens]")
    require_dtype(tensor, "uint64", "int64")
    require_unit_stride(tensor)
    if tensor.shape[0] < batch.total_tokens:
        raise ValueError(
            f"tree_mask: has {tensor.shape[0]} words, expected at least {batch.total_tokens}, one "
            "for each query token"
        )
    if tensor.device is None:
        return TreeMask(tensor, _host_words(tensor, batch))
    if tensor.device != device:
        expected = "host memory" if device is None else f"cuda:{device} or host memory"
        raise ValueError(f"tree_mask: lies on {tensor.place}, expected {expected}")
    return TreeMask(tensor, None)


def _host_words(tensor: TensorView, batch: HybridBatch) -> npt.NDArray[np.uint64]:
    """Copy the words of a batch; none of a long request may be one of a tree."""
    words = to_numpy(tensor)[: batch.total_tokens].astype(np.uint64)
    for request in (batch.q_lens > MOST_TREE_TOKENS).nonzero()[0]:
        begin, end = batch.qo_indptr[request : request + 2]
        if words[begin:end].any():
            raise ValueError(
                f"tree_mask: request {request} has {end - begin} query tokens and words that are "
                f"not 0, expected at most {MOST_TREE_TOKENS} tokens in a tree; set its words to 0 "
                "for a causal mask, or pass it in parts"
            )
    return words
