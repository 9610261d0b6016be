"""`HybridBatch`: the lengths of one ragged batch and where its keys lie, validated on the host."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from podrt.spec.query_lengths import QueryLengths
from podrt.spec.shared_prefix import SharedPrefix

Int32Array = npt.NDArray[np.int32]

_INT32 = np.dtype(np.int32)
_INT32_MAX = np.iinfo(np.int32).max
#: Query lengths of more requests are not kept: they are large, and seldom come twice.
_MOST_KEPT = 4096


class HybridBatch(NamedTuple):
    """Prefill and decode requests of one batch, in any order.

    Make one with `contiguous`, `from_block_table` or `from_kv_indptr`: they also check the lengths
    against the room that the cache or page table has. Zero requests, requests without query tokens
    and requests without keys are all fine, and so are more query tokens than keys.

    Attributes
    ----------
    queries : QueryLengths
        Query tokens of every request.
    kv_lens : int32 array [requests]
        Keys of every request, its new tokens included. Read-only.
    max_kv_len : int
        Keys of the longest request, those of its prefix included; 0 in an empty batch.
    page_begin : int32 array [requests]
        Index of every request's first entry in the flat page table; 0 for a contiguous cache.
    page_size : int or None
        Tokens of a page; None for a contiguous cache, where request i owns row i.
    prefixes : tuple of SharedPrefix
        Keys that several requests share. Each is a request of its own behind all others, with the
        tokens of those that share it, which see all its keys; theirs are those that follow
        (`podrt.spec.prefixes.sharing`).
    """

    queries: QueryLengths
    kv_lens: Int32Array
    max_kv_len: int
    page_begin: Int32Array
    page_size: int | None = None
    prefixes: tuple[SharedPrefix, ...] = ()

    @classmethod
    def empty(cls, page_size: int | None = None) -> HybridBatch:
        """Batch of no requests."""
        none = np.zeros(0, np.int32)
        return cls(*_lengths(np.zeros(1, np.int32), none), _multiples(0, 0), page_size)

    @classmethod
    def contiguous(cls, qo_indptr: Int32Array, kv_lens: Int32Array) -> HybridBatch:
        """Batch over a cache ``[B, L, Hkv, D]`` whose row i belongs to request i.

        The cache's own shape is checked by `require_cache`.

        Raises
        ------
        TypeError, ValueError
            `qo_indptr` or `kv_lens` is not a valid int32 array.
        """
        return cls(*_lengths(qo_indptr, kv_lens), _multiples(0, len(kv_lens)))

    @classmethod
    def from_block_table(
        cls,
        qo_indptr: Int32Array,
        kv_lens: Int32Array,
        *,
        shape: tuple[int, ...],
        row_stride: int,
        page_size: int,
    ) -> HybridBatch:
        """Batch over a paged cache with a block table, whose values may live on a GPU.

        Parameters
        ----------
        qo_indptr, kv_lens : int32 arrays
            As in the class.
        shape : tuple of int
            ``(requests, max_pages)`` of the block table.
        row_stride : int
            Elements from one row of the block table to the next.
        page_size : int
            Tokens of a page.

        Raises
        ------
        TypeError, ValueError
            An argument is malformed, or a request has more keys than its row has pages for.
        """
        queries, kv_lens, max_kv_len = _lengths(qo_indptr, kv_lens)
        _require_page_size(page_size)
        requests = len(kv_lens)
        if len(shape) != 2 or shape[0] != requests:
            raise ValueError(
                f"block_table has shape {tuple(shape)}; expected ({requests}, max_pages), "
                "one row per request of kv_lens"
            )
        if not 0 <= max(requests - 1, 0) * row_stride <= _INT32_MAX:
            raise ValueError(
                f"block_table has a row stride of {row_stride} elements over {requests} rows; "
                f"offsets must be between 0 and {_INT32_MAX}"
            )
        if max_kv_len > shape[1] * page_size:
            _refuse_room(kv_lens, np.full(requests, shape[1]), page_size, "block_table")
        page_begin = _multiples(row_stride if requests > 1 else 0, requests)
        return cls(queries, kv_lens, max_kv_len, page_begin, page_size)

    @classmethod
    def from_kv_indptr(
        cls,
        qo_indptr: Int32Array,
        kv_lens: Int32Array,
        *,
        kv_indptr: Int32Array,
        num_kv_indices: int,
        page_size: int,
    ) -> HybridBatch:
        """Batch over a paged cache whose page numbers are listed one request after the other.

        Parameters
        ----------
        qo_indptr, kv_lens : int32 arrays
            As in the class.
        kv_indptr : int32 array [requests + 1]
            Request i owns entries ``kv_indptr[i]`` to ``kv_indptr[i + 1]`` of kv_indices.
        num_kv_indices : int
            Length of kv_indices, whose values may live on a GPU; it may be longer than needed.
        page_size : int
            Tokens of a page.

        Raises
        ------
        TypeError, ValueError
            An argument is malformed, or a request has more keys than it has pages for.
        """
        queries, kv_lens, max_kv_len = _lengths(qo_indptr, kv_lens)
        _require_page_size(page_size)
        _require_int32_vector(kv_indptr, "kv_indptr")
        pages = kept_pages(kv_indptr.tobytes(), len(kv_lens), page_size)
        if pages.end > num_kv_indices:
            raise ValueError(
                f"kv_indices has {num_kv_indices} entries; kv_indptr ends at {pages.end}, "
                "so it needs at least that many"
            )
        if max_kv_len > pages.least_room:
            is_too_long = kv_lens > pages.room
            if is_too_long.item(is_too_long.argmax()):
                _refuse_room(kv_lens, pages.num_pages, page_size, "kv_indptr")
        return cls(queries, kv_lens, max_kv_len, pages.begin, page_size)

    def with_keys(self, kv_lens: Sequence[int]) -> HybridBatch:
        """Return the same requests, at least one, in the same places with other lengths.

        In a third of the time of making one from the beginning. That lengths are 0 or more and fit
        their places is for the caller to know.
        """
        lens = _frozen(np.array(kv_lens, np.int32))
        return HybridBatch(self.queries, lens, max(kv_lens), self.page_begin, self.page_size)

    @property
    def num_requests(self) -> int:
        """Requests of the batch."""
        return len(self.kv_lens)

    @property
    def first_prefix(self) -> int | None:
        """The first request that stands for a prefix; None without any."""
        return self.num_requests - len(self.prefixes) if self.prefixes else None

    def as_given(self, request: int, page: int) -> tuple[int, int]:
        """Return the request, and which of its pages it is, as they were before prefixes."""
        for number, (begin, end, num_keys) in enumerate(self.prefixes, self.first_prefix or 0):
            if request == number:
                return begin, page
            if begin <= request < end and self.page_size is not None:
                return request, page + num_keys // self.page_size
        return request, page

    @property
    def qo_indptr(self) -> Int32Array:
        """First row of every request in q, int32 ``[requests + 1]``; as `QueryLengths` has it."""
        return self.queries.qo_indptr

    @property
    def q_lens(self) -> Int32Array:
        """Query tokens of every request, int32 ``[requests]``."""
        return self.queries.q_lens

    @property
    def total_tokens(self) -> int:
        """Query tokens of the batch, the rows of q."""
        return self.queries.total_tokens

    @property
    def min_q_len(self) -> int:
        """Query tokens of the request with fewest; 0 in an empty batch."""
        return self.queries.min_q_len

    @property
    def max_q_len(self) -> int:
        """Query tokens of the request with most; 0 in an empty batch."""
        return self.queries.max_q_len

    def require_cache(self, shape: tuple[int, ...], name: str = "k_cache") -> None:
        """Check that a cache of that shape can hold the batch.

        Parameters
        ----------
        shape : tuple of int
            ``[B, L, Hkv, D]``, or ``[pages, page_size, Hkv, D]`` of a paged cache.
        name : str
            Argument to name in the error.

        Raises
        ------
        ValueError
            The cache has another rank or page size, too few rows, rows that are too short, or no
            page for keys that there are.
        """
        if len(shape) != 4:
            layout = "[B, L, Hkv, D]" if self.page_size is None else "[pages, page_size, Hkv, D]"
            raise ValueError(f"{name} has shape {tuple(shape)}; expected {layout}")
        if self.page_size is not None:
            if shape[1] != self.page_size:
                raise ValueError(
                    f"{name} has pages of {shape[1]} tokens; expected page_size={self.page_size}"
                )
            if not self.has_room_in(shape):
                raise ValueError(
                    f"{name} has no pages; the batch has requests of up to {self.max_kv_len} keys"
                )
        elif not self.has_room_in(shape):
            raise ValueError(
                f"{name} has {shape[0]} rows of {shape[1]} tokens; the batch needs at least "
                f"{self.num_requests} rows of {self.max_kv_len}: pass a larger cache, or a page "
                "table"
            )

    def has_room_in(self, shape: tuple[int, ...]) -> bool:
        """Whether a cache of that shape is large enough, whatever its page numbers are."""
        rows, length = shape[:2]
        if self.page_size is None:
            return rows >= self.num_requests and length >= self.max_kv_len
        return rows > 0 or self.max_kv_len == 0


def _lengths(qo_indptr: Int32Array, kv_lens: Int32Array) -> tuple[QueryLengths, Int32Array, int]:
    """Return what a `HybridBatch` begins with."""
    # The extremes are looked up where they are: NumPy's reductions take three times as long.
    _require_int32_vector(kv_lens, "kv_lens")
    kv_lens = kv_lens.copy()  # a later change by the caller is not to break the batch
    kv_lens.setflags(write=False)
    requests = len(kv_lens)
    if requests and kv_lens.item(kv_lens.argmin()) < 0:
        at = int(np.argmax(kv_lens < 0))
        raise ValueError(f"kv_lens[{at}] is {kv_lens[at]}; lengths must be 0 or more")
    queries = _query_lengths(qo_indptr, requests)
    return queries, kv_lens, kv_lens.item(kv_lens.argmax()) if requests else 0


def _query_lengths(qo_indptr: Int32Array, requests: int) -> QueryLengths:
    if requests > _MOST_KEPT:
        return QueryLengths(*_indptr(qo_indptr, "qo_indptr", requests))
    _require_int32_vector(qo_indptr, "qo_indptr")
    return _kept_query_lengths(qo_indptr.tobytes(), requests)


@lru_cache(maxsize=4)
def _kept_query_lengths(qo_indptr: bytes, requests: int) -> QueryLengths:
    indptr = np.frombuffer(qo_indptr, np.int32)
    return QueryLengths(*_differences(indptr, "qo_indptr", requests))


class Pages(NamedTuple):
    """The pages of every request, and the tokens that they have room for."""

    begin: Int32Array
    num_pages: Int32Array
    room: npt.NDArray[np.int64]
    least_room: int
    end: int


@lru_cache(maxsize=4)  # a server's next batch often has as many pages
def kept_pages(kv_indptr: bytes, requests: int, page_size: int) -> Pages:
    """Return the pages of requests, given the bytes of their offsets, which are checked."""
    indptr = np.frombuffer(kv_indptr, np.int32)
    _, count, _ = _differences(indptr, "kv_indptr", requests)
    room = np.multiply(count, page_size, dtype=np.int64)
    return Pages(
        indptr[:-1],
        count,
        room,
        room.item(room.argmin()) if requests else _INT32_MAX,
        indptr.item(-1),
    )


def _indptr(array: Int32Array, name: str, requests: int) -> tuple[Int32Array, Int32Array, int]:
    """Return a checked copy, its differences and the least of these; 0 if there are none."""
    return _differences(_int32_vector(array, name), name, requests)


def _differences(
    indptr: Int32Array, name: str, requests: int
) -> tuple[Int32Array, Int32Array, int]:
    """Do so for an array that nobody changes."""
    if len(indptr) != requests + 1:
        raise ValueError(
            f"{name} has {len(indptr)} entries; expected {requests + 1}, "
            f"one more than the {requests} of kv_lens"
        )
    if indptr.item(0) != 0:
        raise ValueError(f"{name}[0] is {indptr[0]}; it must be 0")
    lengths = _frozen(indptr[1:] - indptr[:-1])
    least = lengths.item(lengths.argmin()) if requests else 0
    # Differences of numbers that are not negative fit.
    if least < 0 or indptr.item(indptr.argmin()) < 0:
        at = int(np.argmax(indptr[1:] < indptr[:-1]))
        raise ValueError(
            f"{name} falls from {indptr[at]} at {at} to {indptr[at + 1]} at {at + 1}; "
            "it must not decrease"
        )
    return indptr, lengths, least


def _int32_vector(array: Int32Array, name: str) -> Int32Array:
    """Return a read-only copy, so that a later change by the caller cannot break the batch."""
    _require_int32_vector(array, name)
    return _frozen(array.copy())


def _require_int32_vector(array: Int32Array, name: str) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is {type(array).__name__}; expected a NumPy int32 array")
    if array.dtype != _INT32:
        raise TypeError(f'{name} has dtype {array.dtype}; expected int32: use .astype("int32")')
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; expected one dimension")


@lru_cache(maxsize=64)  # servers use a table again and again, for a few numbers of requests
def _multiples(step: int, count: int) -> Int32Array:
    """Return 0, step, 2 step, ...; read-only, and the same object again."""
    room = 1 << count.bit_length()
    return _multiples_to(step, room if room * step <= _INT32_MAX else count)[:count]


@lru_cache(maxsize=16)
def _multiples_to(step: int, count: int) -> Int32Array:
    multiples = np.arange(count, dtype=np.int32)
    multiples *= step
    return _frozen(multiples)


def _frozen(array: Int32Array) -> Int32Array:
    array.setflags(write=False)
    return array


def _require_page_size(page_size: int) -> None:
    if page_size < 1:
        raise ValueError(f"page_size is {page_size}; it must be at least 1")


def _refuse_room(kv_lens: Int32Array, pages: Int32Array, page_size: int, name: str) -> NoReturn:
    room = pages.astype(np.int64) * page_size
    at = int(np.argmax(kv_lens > room))
    raise ValueError(
        f"kv_lens[{at}] is {kv_lens[at]}; {name} gives request {at} {pages[at]} pages of "
        f"{page_size} tokens, room for {room[at]}"
    )
