"""Prefixes that requests of a batch share: which there are, and the batch in two parts.

Attention over a prefix is computed for all tokens that share it as if they were one request's, so
that its keys are read once for all of them; attention over what follows is each request's own. Both
are merged by their log-sum-exps (Bifurcated attention, arXiv 2403.08845; FlashInfer's cascades).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.spec.batch import HybridBatch

Int32Array = npt.NDArray[np.int32]


class SharedPrefix(NamedTuple):
    """Requests of a batch, one after another, that have their first keys in the same pages.

    Attributes
    ----------
    begin, end : int
        Requests ``begin`` to ``end - 1``.
    num_keys : int
        Keys that they share: whole pages, none of which holds a new token of theirs.
    """

    begin: int
    end: int
    num_keys: int


class Parts(NamedTuple):
    """A batch in two parts over the same rows of q, and the same page table.

    Attributes
    ----------
    shared : HybridBatch
        A request for each prefix, over its keys, all of which its tokens see; and one without keys
        for the tokens between prefixes.
    own : HybridBatch
        The requests over the keys that follow.
    """

    shared: HybridBatch
    own: HybridBatch


def find_prefixes(
    batch: HybridBatch, pages: Int32Array, *, least_saved_keys: int = 0
) -> list[SharedPrefix]:
    """Find the prefixes that save most keys from being read again.

    A request shares one prefix at most, with its neighbours in the batch.

    Parameters
    ----------
    batch : HybridBatch
        A paged batch.
    pages : int32 array [entries]
        Its flat page table.
    least_saved_keys : int
        Prefixes that save fewer are left out: keys times the requests beyond the first.

    Returns
    -------
    list of SharedPrefix
        In the order of the batch.
    """
    page_size = _page_size(batch)
    alike = [
        _equal_pages(batch, pages, request) * page_size for request in range(batch.num_requests - 1)
    ]
    found: list[SharedPrefix] = []
    for begin, end in _runs(alike):
        found += _best_of(alike, begin, end)
    return [
        each for each in found if (each.end - each.begin - 1) * each.num_keys >= least_saved_keys
    ]


def checked_prefixes(batch: HybridBatch, given: Iterable[Sequence[int]]) -> list[SharedPrefix]:
    """Check prefixes that a caller names; those of one request or no key are left out.

    Raises
    ------
    ValueError
        Names the prefix that does not fit the batch, and why.
    """
    page_size, last_end = _page_size(batch), 0
    prefixes = []
    for number, each in enumerate(given):
        prefix = SharedPrefix(*map(int, each))
        begin, end, num_keys = prefix
        name = f"shared_prefixes[{number}]={tuple(prefix)}"
        if not last_end <= begin <= end <= batch.num_requests:
            raise ValueError(
                f"{name}: requests must be from {last_end} to {batch.num_requests}, and prefixes "
                "in the order of the batch, none within another"
            )
        if num_keys < 0 or num_keys % page_size:
            raise ValueError(f"{name}: its keys must be whole pages of {page_size}")
        most = _old_keys(batch)[begin:end]
        if len(most) and num_keys > most.min():
            at = begin + int(most.argmin())
            raise ValueError(
                f"{name}: request {at} has {batch.kv_lens[at]} keys, {batch.q_lens[at]} of them "
                f"new; at most {most.min()} can be shared"
            )
        last_end = end
        if num_keys and end - begin > 1:
            prefixes.append(prefix)
    return prefixes


def in_parts(batch: HybridBatch, prefixes: Sequence[SharedPrefix]) -> Parts:
    """Return a paged batch in two parts, prefixes and what follows."""
    page_size = _page_size(batch)
    shared_keys = np.zeros(batch.num_requests, np.int32)
    indptr, kv_lens, page_begin = [0], [], []
    row_of = batch.qo_indptr

    def add(end_row: int, num_keys: int, first_entry: int) -> None:
        if end_row > indptr[-1]:
            indptr.append(end_row)
            kv_lens.append(num_keys)
            page_begin.append(first_entry)

    for begin, end, num_keys in prefixes:
        shared_keys[begin:end] = num_keys
        add(int(row_of[begin]), 0, 0)
        add(int(row_of[end]), num_keys, int(batch.page_begin[begin]))
    add(batch.total_tokens, 0, 0)
    own = batch.page_begin + shared_keys // page_size
    return Parts(
        _batch(indptr, kv_lens, page_begin, page_size),
        _batch(row_of, batch.kv_lens - shared_keys, own, page_size),
    )


def _batch(
    qo_indptr: npt.ArrayLike, kv_lens: npt.ArrayLike, page_begin: npt.ArrayLike, page_size: int
) -> HybridBatch:
    lengths = HybridBatch.contiguous(np.array(qo_indptr, np.int32), np.array(kv_lens, np.int32))
    begin = np.array(page_begin, np.int32)
    begin.setflags(write=False)
    return lengths._replace(page_begin=begin, page_size=page_size)


def _page_size(batch: HybridBatch) -> int:
    if batch.page_size is None:
        raise ValueError("page_size=None: requests share keys in pages; use a paged cache")
    return batch.page_size


def _old_keys(batch: HybridBatch) -> Int32Array:
    """Return the keys of each request that are before all of its new tokens."""
    old: Int32Array = np.maximum(batch.kv_lens - batch.q_lens, 0)
    return old


def _equal_pages(batch: HybridBatch, pages: Int32Array, request: int) -> int:
    """Return the whole pages that a request and the next begin with alike."""
    most = int(_old_keys(batch)[request : request + 2].min()) // _page_size(batch)
    one, other = (
        pages[begin : begin + most] for begin in batch.page_begin[request : request + 2].tolist()
    )
    differs = one != other
    return int(differs.argmax()) if differs.any() else most


def _runs(alike: Sequence[int]) -> list[tuple[int, int]]:
    """Return the longest runs of requests in which all neighbours share something."""
    edges = [-1, *(at for at, keys in enumerate(alike) if not keys), len(alike)]
    return [(left + 1, right) for left, right in pairwise(edges) if right > left + 1]


def _best_of(alike: Sequence[int], begin: int, end: int) -> list[SharedPrefix]:
    """Return the prefixes of requests `begin` to `end` that save most keys.

    What neighbours have in common is saved at most once for each two that are not parted.
    """
    common = np.array(alike[begin:end])
    if common.min() * len(common) >= common.sum() - common.min():
        return [SharedPrefix(begin, end + 1, int(common.min()))]
    saved = np.zeros(len(common) + 2, np.int64)  # at most, by the first 0, 1, 2, ... requests
    sizes = [0]  # of the last prefix among them, in requests beyond its first
    for end_of in range(1, len(saved)):
        beyond = np.arange(end_of)
        shortest = np.minimum.accumulate(common[: end_of - 1][::-1])
        savings = saved[:end_of][::-1].copy()
        savings[1:] += beyond[1:] * shortest
        sizes.append(int(savings.argmax()))
        saved[end_of] = savings[sizes[-1]]
    found, last = [], len(sizes) - 1
    while last > 0:
        first = last - 1 - sizes[last]
        if sizes[last]:
            num_keys = int(common[first : last - 1].min())
            found.append(SharedPrefix(begin + first, begin + last, num_keys))
        last = first
    return found[::-1]
