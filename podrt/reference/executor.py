"""Walk a `Plan` in NumPy as the kernels do: tiles, key ranges, splits and merges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt.plan.order import prefill_unit
from podrt.plan.work import Plan

Float64Array = npt.NDArray[np.float64]

_LOG2_E = 1 / math.log(2)


def execute_plan(
    plan: Plan,
    q: npt.NDArray[Any],
    k_cache: npt.NDArray[Any],
    v_cache: npt.NDArray[Any],
    *,
    page_table: npt.NDArray[np.int32] | None = None,
    page_size: int | None = None,
    sm_scale: float | None = None,
    sinks: npt.NDArray[Any] | None = None,
    tree_mask: npt.NDArray[np.uint64] | None = None,
    kv_tile: int = 64,
    order: npt.ArrayLike | None = None,
) -> tuple[Float64Array, Float64Array]:
    """Run every unit of a plan on the host, in float64.

    A row that no item of the plan writes stays NaN, and so does anything that is merged before it
    was written.

    Parameters
    ----------
    plan : Plan
        The work lists to walk; mask and soft-cap are those of its layer.
    q : array [total_tokens, Hq, D]
        Any float dtype.
    k_cache, v_cache : arrays [B, L, Hkv, D] or [pages, page_size, Hkv, D]
        Contiguous, or paged when `page_table` is given. The D of values may be another, Dv.
    page_table : int32 array, optional
        Flat page table.
    page_size : int, optional
        Tokens of a page, needed with `page_table`.
    sm_scale : float, optional
        Factor of the scores; ``1 / sqrt(D)`` when None.
    sinks : float array [Hq], optional
        Logits of one more key, whose value is 0, that every row sees.
    tree_mask : uint64 array [total_tokens], optional
        Words of tokens, where the plan's layer takes them (`Mask.tree`).
    kv_tile : int
        Keys in one step of the online softmax.
    order : permutation of the plan's units, or int, optional
        The order in which units finish (on a GPU it can be any): unit numbers, those of `decode`
        counted on from those of `prefill`; or a seed for a random order. None: as listed.

    Returns
    -------
    out : float64 array [total_tokens, Hq, Dv]
        0 in rows that see no key.
    lse : float64 array [total_tokens, Hq]
        Natural log, sinks left out; -inf in rows that see no key.

    Raises
    ------
    ValueError
        Arguments do not agree, or a split tile did not get all of its splits.
    """
    if (page_table is None) != (page_size is None):
        raise ValueError(
            f"page_table and page_size={page_size} must be given together, or neither of them"
        )
    if page_size is not None and k_cache.shape[1] != page_size:
        raise ValueError(f"page_size is {page_size}; k_cache has pages of {k_cache.shape[1]}")
    if kv_tile < 1:
        raise ValueError(f"kv_tile is {kv_tile}; it must be at least 1")
    scale = 1 / math.sqrt(q.shape[2]) if sm_scale is None else sm_scale
    cap = plan.spec.logits_soft_cap
    cache = _Cache(k_cache, v_cache, page_table, page_size)
    scaled_q = q.astype(np.float64) * (scale * _LOG2_E if cap is None else scale / cap)
    run = _Run.start(plan, scaled_q, cache, sinks, tree_mask, kv_tile)
    for unit in _finish_order(plan, order):
        run.do(unit)
    run.require_merged()
    run.join()
    return run.out, run.lse


def _finish_order(plan: Plan, order: npt.ArrayLike | None) -> Iterator[int]:
    units = plan.num_prefill_units + plan.num_decode_units
    if order is None:
        return iter(range(units))
    if isinstance(order, int | np.integer):
        return iter(np.random.default_rng(order).permutation(units).tolist())
    chosen = np.asarray(order)
    if chosen.ndim != 1 or not np.array_equal(np.sort(chosen), np.arange(units)):
        raise ValueError(f"order is no permutation of the plan's {units} units (0 to {units - 1})")
    return iter(chosen.tolist())


@dataclass(frozen=True)
class _Cache:
    k: npt.NDArray[Any]
    v: npt.NDArray[Any]
    page_table: npt.NDArray[np.int32] | None
    page_size: int | None

    def read(self, item: Any, kv_head: int, keys: npt.NDArray[np.int64]) -> tuple[Any, Any]:
        """K ``[len(keys), D]`` and V ``[len(keys), Dv]``, float64, of the item's request."""
        if self.page_table is None or self.page_size is None:
            row, slot = np.full(len(keys), item["request"]), keys
        else:
            row = self.page_table[item["page_begin"] + keys // self.page_size]
            slot = keys % self.page_size
        at = row, slot, kv_head
        return self.k[at].astype(np.float64), self.v[at].astype(np.float64)


@dataclass(frozen=True)
class _Run:
    """Inputs, outputs and the scratch memory of one launch."""

    plan: Plan
    scaled_q: Float64Array
    cache: _Cache
    sinks2: Float64Array | None
    words: npt.NDArray[np.uint64] | None
    kv_tile: int
    out: Float64Array
    lse: Float64Array
    partial_out: Float64Array
    partial_lse2: Float64Array
    arrived: npt.NDArray[np.int64]

    @classmethod
    def start(
        cls,
        plan: Plan,
        scaled_q: Float64Array,
        cache: _Cache,
        sinks: npt.NDArray[Any] | None,
        words: npt.NDArray[np.uint64] | None,
        kv_tile: int,
    ) -> _Run:
        partials, value_dim = plan.partial_rows * plan.num_kv_heads, cache.v.shape[3]
        return cls(
            plan,
            scaled_q,
            cache,
            None if sinks is None else sinks.astype(np.float64) * _LOG2_E,
            words,
            kv_tile,
            out=np.full((*scaled_q.shape[:2], value_dim), np.nan),
            lse=np.full(scaled_q.shape[:2], np.nan),
            partial_out=np.full((partials, value_dim), np.nan),
            partial_lse2=np.full(partials, np.nan),
            arrived=np.zeros((plan.num_merges, plan.num_kv_heads), np.int64),
        )

    def do(self, unit: int) -> None:
        """One unit of work, as one CTA or warp does it."""
        plan = self.plan
        is_prefill = unit < plan.num_prefill_units
        items = plan.prefill if is_prefill else plan.decode
        tile_rows = plan.prefill_rows if is_prefill else plan.decode_rows
        if is_prefill:
            number, kv_head = prefill_unit(unit, plan.prefill_runs, plan.num_kv_heads)
        else:
            number, kv_head = divmod(unit - plan.num_prefill_units, plan.num_kv_heads)
        item = items[number]
        token, head = self._packed_rows(item, kv_head, tile_rows)
        out, lse2 = self._attend(item, kv_head, token, head)
        if item["num_splits"] != 1:
            self._store_partial(item, kv_head, tile_rows, out, lse2)
            if not item["num_splits"] or not self._is_last(item, kv_head):
                return
            splits = np.arange(item["num_splits"])
            begins = self._partial_begin(item["partial_row"], kv_head, tile_rows, splits)
            out, lse2 = self._merged(np.add.outer(begins, np.arange(len(token))))
        self._write(item["q_begin"] + token, head, out, lse2)

    def join(self) -> None:
        """Merge what items have left, as the kernel does that follows them."""
        joins, plan = self.plan.joins, self.plan
        if joins is None:
            return
        heads = np.arange(plan.num_kv_heads * plan.group)
        kv_head, in_group = heads // plan.group, heads % plan.group
        for token, *parts, _ in joins.tokens.tolist():
            begins = []  # of each split, of every head
            for row, tile, tile_rows in (parts[:3], parts[3:]):
                of_tile, in_tile = np.divmod(row + in_group, tile_rows)
                partial_row, num_splits = joins.tiles[tile + of_tile].T
                for split in range(num_splits.max()):
                    begin = self._partial_begin(partial_row, kv_head, tile_rows, split)
                    begins.append(np.where(split < num_splits, begin + in_tile, -1))
            self._write(np.full(len(heads), token), heads, *self._merged(np.array(begins)))

    def _write(self, token: Any, head: Any, out: Any, lse2: Any) -> None:
        if self.sinks2 is not None:
            out = out * _share_beside(self.sinks2[head], lse2)[:, None]
        self.out[token, head] = out
        self.lse[token, head] = lse2 / _LOG2_E

    def require_merged(self) -> None:
        """Check that every split tile was merged, which leaves its counters at 0."""
        for merge, kv_head in np.argwhere(self.arrived):
            raise ValueError(
                f"plan: merge {merge} of KV head {kv_head} is left with "
                f"{self.arrived[merge, kv_head]} splits that nobody merged"
            )

    def _packed_rows(self, item: Any, kv_head: int, tile_rows: int) -> tuple[Any, Any]:
        """Token and query head of every packed row of the tile that exists."""
        group = self.plan.group
        end = min(item["row_begin"] + tile_rows, abs(item["q_len"]) * group)
        packed = np.arange(item["row_begin"], end)
        return packed // group, kv_head * group + packed % group

    def _attend(
        self, item: Any, kv_head: int, token: Any, head: Any
    ) -> tuple[Float64Array, Float64Array]:
        """Online softmax over the item's keys, from the high end down, in the exp2 domain."""
        q = self.scaled_q[item["q_begin"] + token, head]
        lengths = int(item["q_len"]), int(item["kv_len"])  # if negative, all see all
        first = item["q_begin"]
        words = None if self.words is None else self.words[first : first + lengths[0]]
        cap = self.plan.spec.logits_soft_cap
        top = np.full(len(token), -np.inf)
        total = np.zeros(len(token))
        acc = np.zeros((len(token), self.partial_out.shape[1]))
        for begin in reversed(range(item["kv_begin"], item["kv_end"], self.kv_tile)):
            keys = np.arange(begin, min(begin + self.kv_tile, item["kv_end"]))
            k, v = self.cache.read(item, kv_head, keys)
            scores = q @ k.T
            if cap is not None:
                scores = cap * _LOG2_E * np.tanh(scores)
            scores[~self.plan.mask.sees(token, keys, *lengths, words)] = -np.inf
            new_top = np.maximum(top, scores.max(axis=1))
            base = _finite_or_zero(new_top)
            weights, shrink = np.exp2(scores - base[:, None]), np.exp2(top - base)
            acc = acc * shrink[:, None] + weights @ v
            total = total * shrink + weights.sum(axis=1)
            top = new_top
        return _normalise(acc, total, top)

    def _store_partial(self, item: Any, kv_head: int, tile_rows: int, out: Any, lse2: Any) -> None:
        at = self._partial_begin(item["partial_row"], kv_head, tile_rows, item["split"])
        self.partial_out[at : at + len(out)] = out
        self.partial_lse2[at : at + len(out)] = lse2

    def _is_last(self, item: Any, kv_head: int) -> bool:
        """Count an arrival; the last one sets the counter back for the next launch."""
        at = item["merge"], kv_head
        self.arrived[at] += 1
        if self.arrived[at] < item["num_splits"]:
            return False
        self.arrived[at] = 0
        return True

    def _merged(self, at: npt.NDArray[np.int64]) -> tuple[Float64Array, Float64Array]:
        """Merge partial results ``[splits, rows]``; none where that is -1."""
        lse2 = np.where(at < 0, -np.inf, self.partial_lse2[at])
        top = lse2.max(axis=0)
        weights = np.exp2(lse2 - _finite_or_zero(top))
        partial_out = np.where(at[:, :, None] < 0, 0.0, self.partial_out[at])
        acc = (weights[:, :, None] * partial_out).sum(axis=0)
        return _normalise(acc, weights.sum(axis=0), top)

    def _partial_begin(self, partial_row: Any, kv_head: Any, tile_rows: int, split: Any) -> Any:
        """Return where the partial results of a split begin; of several numbers, of each."""
        block = (np.int64(partial_row) + np.int64(split) * tile_rows) * self.plan.num_kv_heads
        return block + kv_head * tile_rows


def _finite_or_zero(top: Float64Array) -> Float64Array:
    """A base that can be subtracted: rows that saw no key yet have a maximum of -inf."""
    return np.where(np.isneginf(top), 0.0, top)


def _share_beside(sinks2: Float64Array, lse2: Float64Array) -> Float64Array:
    """Share that the keys of rows have in sums that a sink each belongs to."""
    share: Float64Array = np.exp2(-np.logaddexp2(0.0, sinks2 - _finite_or_zero(lse2)))
    return share


def _normalise(
    acc: Float64Array, total: Float64Array, top: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Output and log2-domain LSE; 0 and -inf in rows that saw no key."""
    seen = total != 0  # NaN counts as seen, so that reading unwritten memory shows
    divisor = np.where(seen, total, 1.0)
    return acc / divisor[:, None], np.where(seen, top + np.log2(divisor), -np.inf)
