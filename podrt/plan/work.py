"""The work list: the one layout that planner, kernels and the NumPy executor share.

A *tile* is a block of packed query rows of one request: packed row ``r`` of KV head ``h`` is token
``r // group`` and query head ``h * group + r % group``, so all query heads that share a KV head
share its keys. A *work item* is one tile over one range of keys, for every KV head; a *unit* is one
item for one KV head, which is what a CTA or warp takes. Units of decode are numbered item by item
(``unit = item * num_kv_heads + kv_head``), those of prefill as `podrt.plan.order` says.
A tile whose keys are split over several items is merged by the last of them to finish, or by those
that find no other work to do meanwhile. Tiles of requests that share a prefix are left to a kernel
that merges them with those of the prefix (`podrt.plan.joins`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from podrt.plan.joins import Joins
from podrt.spec.attention import AttentionSpec
from podrt.spec.mask import Mask

#: Fields of a work item, all int32, in memory order; rendered into the kernels as a struct.
WORK_ITEM_FIELDS = (
    ("request", "row of the contiguous cache that holds the request's keys"),
    ("page_begin", "index of the request's first entry in the page table"),
    ("q_begin", "first row of the request in q"),
    ("q_len", "query tokens of the request; negative where all see all keys, as of a prefix"),
    ("kv_len", "keys of the request, its new tokens included"),
    ("row_begin", "first packed row of the tile"),
    ("kv_begin", "first key of the item"),
    ("kv_end", "one past the last key of the item"),
    ("split", "which of the tile's splits this is"),
    ("num_splits", "how many items share the tile; 1 = no merge, 0 = joins do it"),
    ("partial_row", "first row of the tile's first split in the partial buffers, in units of rows"),
    ("merge", "index of the tile among the split tiles of the plan"),
)
WORK_ITEM = np.dtype([(name, np.int32) for name, _ in WORK_ITEM_FIELDS])

WorkList = npt.NDArray[Any]  # structured array of WORK_ITEM


def keys_of(items: WorkList) -> npt.NDArray[np.int64]:
    """Return the number of keys of every item."""
    keys: npt.NDArray[np.int64] = (items["kv_end"] - items["kv_begin"]).astype(np.int64)
    return keys


def taken(items: WorkList, order: npt.NDArray[np.intp]) -> WorkList:
    """Return items in another order, moved as the numbers that they are made of: it takes less."""
    rows = items.view(np.int32).reshape(len(items), -1)
    return np.frombuffer(rows.take(order, axis=0, mode="clip"), WORK_ITEM)


class Plan(NamedTuple):
    """Everything a launch needs to know of a batch, besides its tensors.

    Attributes
    ----------
    prefill, decode : structured arrays of `WORK_ITEM`
        Work items in the order in which they are handed out, longest first; those of prefill as
        `podrt.plan.order` has it, those of decode by what they were planned with
        (`podrt.plan.growth`), to within a few keys.
    spec : AttentionSpec
        The attention layer that it was made for; only variants of the same `KernelSpec` run it.
    prefill_rows, decode_rows : int
        Packed query rows of one tile of each side.
    num_merges : int
        Tiles that are split; each has one counter per KV head.
    partial_rows : int
        Rows of the partial buffers per KV head. Rows ``partial_row + split * rows`` onward of an
        item's tile hold that split's result; buffers are ``[partial_rows, num_kv_heads]`` in blocks
        of one tile: element ``((partial_row + split * rows) * num_kv_heads + head * rows + r)``.
    prefill_keys, decode_keys : int
        Keys of all items of each side, for one KV head.
    decode_only_ctas, prefill_only_ctas : int
        CTAs of a fused launch that take one side's work alone, as long as there is any; heeded by
        the Hopper family, whose CTAs otherwise take both sides at once.
    prefill_share, decode_share : int
        Of every ``prefill_share + decode_share`` units of work that CTAs of one SM draw in a fused
        launch, the first `prefill_share` are prefill's; heeded by the portable family, whose CTAs
        take one side at a time.
    prefill_runs : tuple of int
        Where runs of prefill items end, ascending, at most `podrt.plan.order.MAX_RUNS`. The units
        of a run are handed out head by head, those of items behind the last run item by item.
    joins : Joins or None
        What is left to merge when all items are done, where requests share prefixes.
    """

    prefill: WorkList
    decode: WorkList
    spec: AttentionSpec
    prefill_rows: int
    decode_rows: int
    num_merges: int
    partial_rows: int
    prefill_keys: int
    decode_keys: int
    decode_only_ctas: int = 0
    prefill_only_ctas: int = 0
    prefill_share: int = 1
    decode_share: int = 1
    prefill_runs: tuple[int, ...] = ()
    joins: Joins | None = None

    @property
    def num_kv_heads(self) -> int:
        """KV heads."""
        return self.spec.num_kv_heads

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.spec.group

    @property
    def mask(self) -> Mask:
        """Which keys a token sees."""
        return self.spec.mask

    def with_ctas_of_one_side(self, decode_only: int, prefill_only: int) -> Plan:
        """Return the same with so many CTAs of one side; in a third of the time of `_replace`."""
        return Plan(*self[:9], decode_only, prefill_only, *self[11:])

    @property
    def num_joined_tokens(self) -> int:
        """Tokens that share a prefix, whose rows are to be joined."""
        return 0 if self.joins is None else len(self.joins.tokens)

    @property
    def num_prefill_units(self) -> int:
        """Prefill items times KV heads."""
        return len(self.prefill) * self.spec.num_kv_heads

    @property
    def num_decode_units(self) -> int:
        """Decode items times KV heads."""
        return len(self.decode) * self.spec.num_kv_heads

    def prefill_longest_first(self) -> WorkList:
        """Return the prefill items, longest first, in whatever order they are handed out.

        Items of several runs are of several requests; those of one are in that order already.
        """
        if len(self.prefill_runs) <= 1:
            return self.prefill
        return taken(self.prefill, (-keys_of(self.prefill)).argsort())
