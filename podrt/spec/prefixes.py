"""Prefixes that requests of a batch share: which there are, and the batch with each as a request.

Attention over a prefix is computed for all tokens that share it as if they were one request's, so
that its keys are read once for all of them; attention over what follows is each request's own. Both
are merged by their log-sum-exps (Bifurcated attention, arXiv 2403.08845; FlashInfer's cascades).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.spec.batch import HybridBatch
from podrt.spec.query_lengths import QueryLengths
from podrt.spec.shared_prefix import SharedPrefix

Int32Array = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]

_EXPECTED = "expected a list of (begin, end, num_keys), three ints each"


def equal_first_pages(pages: Int32Array, begin: Int32Array, end: Int32Array) -> Ints:
    """Return how many entries of a page table each request and the next one begin with alike.

    Parameters
    ----------
    pages : int32 array [entries]
        A flat page table.
    begin, end : int32 arrays [requests]
        The entries of each request: ``begin[i]`` to ``end[i] - 1``.

    Returns
    -------
    int64 array [requests - 1]
    """
    equal = np.zeros(max(len(begin) - 1, 0), np.int64)
    most = np.minimum(end[1:] - begin[1:], end[:-1] - begin[:-1])
    if not (most > 0).any():
        return equal
    first = pages.take(begin, mode="clip")
    for request in ((first[1:] == first[:-1]) & (most > 0)).nonzero()[0].tolist():
        count, at, next_at = most[request], begin[request], begin[request + 1]
        differs = pages[at : at + count] != pages[next_at : next_at + count]
        first_difference = int(differs.argmax())
        equal[request] = first_difference if differs[first_difference] else count
    return equal


def find_prefixes(
    batch: HybridBatch,
    equal_pages: Ints,
    *,
    least_saved_keys: int = 0,
    least_saved_a_token: int = 0,
    most_tokens: int | None = None,
    most_prefixes: int | None = None,
) -> list[SharedPrefix]:
    """Find the prefixes that save most keys from being read again.

    A request shares one prefix at most, with its neighbours in the batch.

    Parameters
    ----------
    batch : HybridBatch
        A paged batch.
    equal_pages : int64 array [requests - 1]
        What `equal_first_pages` says of its page table.
    least_saved_keys, least_saved_a_token : int
        Prefixes that save fewer are left out: keys times the requests beyond the first, against a
        number and as many more for each token that shares.
    most_tokens : int, optional
        Requests of more query tokens share none: their tiles read keys for many tokens anyway.
    most_prefixes : int, optional
        Of more than so many those are kept that save most.

    Returns
    -------
    list of SharedPrefix
        In the order of the batch.
    """
    page_size = _page_size(batch)
    if not equal_pages.any():
        return []
    whole_pages = _old_keys(batch) // page_size
    whole_pages[batch.q_lens == 0] = 0  # they read no keys
    if most_tokens is not None:
        whole_pages[batch.q_lens > most_tokens] = 0
    alike = np.minimum(equal_pages, np.minimum(whole_pages[1:], whole_pages[:-1])) * page_size
    found: list[SharedPrefix] = []
    for begin, end in _runs(alike.tolist()):
        found += _best_of(alike, begin, end)
    row_of = batch.qo_indptr
    found = [
        each
        for each in found
        if _saved_keys(each)
        >= least_saved_keys + least_saved_a_token * int(row_of[each.end] - row_of[each.begin])
    ]
    if most_prefixes is not None and len(found) > most_prefixes:
        found = sorted(sorted(found, key=_saved_keys)[len(found) - most_prefixes :])
    return found


def _saved_keys(prefix: SharedPrefix) -> int:
    return (prefix.end - prefix.begin - 1) * prefix.num_keys


def checked_prefixes(batch: HybridBatch, given: Iterable[Sequence[int]]) -> list[SharedPrefix]:
    """Check prefixes that a caller names; those of one request or no key are left out.

    Raises
    ------
    ValueError, TypeError
        Names the prefix that does not fit the batch, or is none, and why.
    """
    page_size, last_end = _page_size(batch), 0
    prefixes = []
    for number, each in enumerate(_listed(given)):
        prefix = _prefix_of(number, each)
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


def _listed(given: Any) -> list[Any]:
    try:
        if isinstance(given, str | bytes):
            raise TypeError
        return list(given)
    except TypeError:
        raise TypeError(f"shared_prefixes={given!r}: {_EXPECTED}") from None


def _prefix_of(number: int, given: Any) -> SharedPrefix:
    try:
        return SharedPrefix(*map(operator.index, given))
    except TypeError:
        raise TypeError(f"shared_prefixes[{number}]={given!r}: {_EXPECTED}") from None


def sharing(batch: HybridBatch, prefixes: Sequence[SharedPrefix]) -> HybridBatch:
    """Return a paged batch in which keys that requests share are there once.

    Its requests are those of `batch` over the keys that follow their prefix, and behind them one
    for each prefix over its keys, with the tokens of all that share it.
    """
    if not prefixes:
        return batch
    begin, end, num_keys = (np.array(each, np.int32) for each in zip(*prefixes, strict=True))
    shared_keys = np.zeros(batch.num_requests, np.int32)
    for prefix in prefixes:
        shared_keys[prefix.begin : prefix.end] = prefix.num_keys
    own_begin = batch.page_begin + shared_keys // np.int32(_page_size(batch))
    return batch._replace(
        queries=_queries_of(batch.queries, begin, end),
        kv_lens=_joined(batch.kv_lens - shared_keys, num_keys),
        page_begin=_joined(own_begin, batch.page_begin[begin]),
        prefixes=tuple(prefixes),
    )


def _queries_of(queries: QueryLengths, begin: Int32Array, end: Int32Array) -> QueryLengths:
    """Return query lengths with those of prefixes; the last ones are kept with those without."""
    made_for = begin.tobytes(), end.tobytes()
    kept: tuple[tuple[bytes, bytes], QueryLengths] | None = queries.derived.get(sharing)
    if kept is not None and kept[0] == made_for:
        return kept[1]
    row_of = queries.qo_indptr
    q_lens = _joined(queries.q_lens, row_of[end] - row_of[begin])
    q_begin = _joined(row_of[:-1], row_of[begin])
    found = QueryLengths(row_of, q_lens, queries.min_q_len, q_begin)
    queries.derived[sharing] = made_for, found
    return found


def _joined(of_requests: Int32Array, of_prefixes: Int32Array) -> Int32Array:
    joined = np.concatenate((of_requests, of_prefixes))
    joined.setflags(write=False)
    return joined


def _page_size(batch: HybridBatch) -> int:
    if batch.page_size is None:
        raise ValueError("page_size=None: requests share keys in pages; use a paged cache")
    return batch.page_size


def _old_keys(batch: HybridBatch) -> Int32Array:
    """Return the keys of each request that are before all of its new tokens."""
    old: Int32Array = np.maximum(batch.kv_lens - batch.q_lens, 0)
    return old


def _runs(alike: Sequence[int]) -> list[tuple[int, int]]:
    """Return the longest runs of requests in which all neighbours share something."""
    edges = [-1, *(at for at, keys in enumerate(alike) if not keys), len(alike)]
    return [(left + 1, right) for left, right in pairwise(edges) if right > left + 1]


def _best_of(alike: Ints, begin: int, end: int) -> list[SharedPrefix]:
    """Return the prefixes of requests `begin` to `end` that save most keys.

    What neighbours have in common is saved at most once for each two that are not parted.
    """
    common = alike[begin:end]
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
