"""Limits within which one captured graph computes any batch."""

from __future__ import annotations

from dataclasses import dataclass

from podrt.kernels.families import Variant
from podrt.plan.bounds import PrefixLimits, plan_bounds
from podrt.plan.joins import joins_bytes
from podrt.policy.schedule import Scheduler
from podrt.runtime.planned import Launches, plan_bytes
from podrt.runtime.scratch import scratch_bytes
from podrt.runtime.workspace import Workspace
from podrt.spec.attention import whole_number
from podrt.spec.batch import HybridBatch
from podrt.tensors.page_table import PageTable


@dataclass(frozen=True)
class Limits:
    """The largest batch that will be planned.

    Attributes
    ----------
    max_requests, max_tokens, max_kv_len : int
        Requests, query tokens of all together, and keys of one.
    max_decode_tokens : int
        Query tokens of a request that shall count as a decode: 1, or more for speculative decoding.
    max_prefixes : int
        Prefixes that decodes of a batch share; 0 for none.
    """

    max_requests: int
    max_tokens: int
    max_kv_len: int
    max_decode_tokens: int = 1
    max_prefixes: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "max_prefixes" else 1
            object.__setattr__(self, name, whole_number(name, value, least))

    @property
    def max_joined_tokens(self) -> int:
        """Most tokens of requests that share a prefix: those of decodes alone."""
        tokens = min(self.max_requests * self.max_decode_tokens, self.max_tokens)
        return tokens if self.max_prefixes else 0

    @property
    def of_prefixes(self) -> PrefixLimits | None:
        """How requests may share prefixes; None where they may not."""
        if not self.max_prefixes:
            return None
        return PrefixLimits(self.max_prefixes, self.max_joined_tokens, self.max_decode_tokens)

    def max_pages(self, page_size: int | None) -> int:
        """Return the pages of the longest request; 0 for a contiguous cache."""
        return 0 if page_size is None else -(-self.max_kv_len // page_size)

    def require(self, batch: HybridBatch, table: PageTable | None) -> None:
        """Raise ValueError unless the batch and its page table are within the limits."""
        most_entries = self.max_requests * self.max_pages(batch.page_size)
        entries = 0 if table is None or table.host_values is None else len(table.host_values)
        if table is not None and entries > most_entries:
            raise ValueError(
                f"{table.tensor.name}: has {entries} entries in host memory, expected at most the "
                f"{most_entries} pages of max_requests and max_kv_len; pass no more than the "
                "requests need"
            )
        for name, got, most in (
            ("max_requests", batch.num_requests - len(batch.prefixes), self.max_requests),
            ("max_tokens", batch.total_tokens, self.max_tokens),
            ("max_kv_len", batch.max_kv_len, self.max_kv_len),
            ("max_prefixes", len(batch.prefixes), self.max_prefixes),
        ):
            if got > most:
                raise ValueError(
                    f"the batch has {name[4:]}={got}, more than the {name}={most} that was "
                    "reserved; call reserve() with a larger limit and capture graphs again"
                )
        for begin, end, _ in batch.prefixes:
            most = batch.q_lens[begin:end].max()
            if most > self.max_decode_tokens:
                raise ValueError(
                    f"shared_prefixes: requests {begin} to {end - 1} have up to {most} new tokens, "
                    f"more than the max_decode_tokens={self.max_decode_tokens} that was reserved; "
                    "let decodes alone share"
                )

    def require_cache(self, shape: tuple[int, ...], page_size: int | None) -> None:
        """Raise ValueError unless a cache, baked into a graph, holds any batch, or has pages."""
        rows, length = shape[:2]
        if page_size is not None:
            if not rows:
                raise ValueError("k_cache: has no pages; a graph needs the cache of its replays")
        elif rows < self.max_requests or length < self.max_kv_len:
            raise ValueError(
                f"k_cache: has {rows} rows of {length} tokens; a graph for up to "
                f"max_requests={self.max_requests} of max_kv_len={self.max_kv_len} needs a cache "
                "of so many, or pages"
            )


@dataclass(frozen=True)
class Room:
    """What batches within some limits need.

    Attributes
    ----------
    decode_rows : int
        Packed query rows of a decode tile, which is the same for all batches.
    plan_bytes, scratch_bytes : int
        Device memory for a plan, and for counters and partial results.
    captured, captured_decode : tuple of Variant
        Kernels that graphs hold, for any batch and for batches of decodes alone.
    variants : tuple of Variant
        All kernels that graphs or ordinary runs may launch.
    """

    decode_rows: int
    plan_bytes: int
    scratch_bytes: int
    captured: tuple[Variant, ...]
    captured_decode: tuple[Variant, ...]
    variants: tuple[Variant, ...]


def room_for(limits: Limits, scheduler: Scheduler) -> Room:
    """Return what batches within the limits need, without allocating or compiling anything."""
    spec = scheduler.spec
    if limits.max_prefixes and (scheduler.policy.deterministic or spec.page_size is None):
        reason = "deterministic=True" if scheduler.policy.deterministic else "page_size=None"
        raise ValueError(f"max_prefixes={limits.max_prefixes}: with {reason} none can be shared")
    decode_rows = scheduler.decode_rows_for(limits.max_decode_tokens)
    bounds = plan_bounds(
        scheduler.tiling(decode_rows),
        num_kv_heads=spec.num_kv_heads,
        group=spec.group,
        max_requests=limits.max_requests,
        max_tokens=limits.max_tokens,
        max_kv_len=limits.max_kv_len,
        mask=spec.mask,
        prefixes=limits.of_prefixes,
    )
    joins = joins_bytes(limits.max_joined_tokens, bounds.items if limits.max_prefixes else 0)
    entries = limits.max_requests * limits.max_pages(spec.page_size)
    return Room(
        decode_rows=decode_rows,
        plan_bytes=plan_bytes(bounds.items, entries, limits.max_tokens * spec.mask.tree) + joins,
        scratch_bytes=scratch_bytes(bounds.partial_rows * spec.num_kv_heads, spec.value_dim),
        captured=scheduler.captured(decode_rows),
        # Tokens that share a prefix may be tiles of prefill.
        captured_decode=scheduler.captured(decode_rows, decodes_only=not limits.max_prefixes),
        variants=scheduler.variants(decode_rows),
    )


@dataclass(frozen=True, eq=False)
class Reservation:
    """Memory and kernels of graphs whose batches are within some limits.

    Attributes
    ----------
    limits : Limits
        The largest batch.
    decode_rows : int
        Packed query rows of a decode tile.
    workspace : Workspace
        Memory that never moves.
    stream : int
        Handle of the stream that it was made ready on, where plans go that name none.
    captured, captured_decode : Launches
        What graphs hold, for any batch and for batches of decodes alone.
    """

    limits: Limits
    decode_rows: int
    workspace: Workspace
    stream: int
    captured: Launches
    captured_decode: Launches

    def launches(self, *, decodes_only: bool) -> Launches:
        """Return what a graph holds, whatever is planned."""
        return self.captured_decode if decodes_only else self.captured
