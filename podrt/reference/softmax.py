"""The kernels' online softmax in NumPy, step by step, as each role goes through the keys of a tile.

The executor walks a plan with an exact softmax. What it cannot see is how a kernel gets by without
finding the maxima of every step: a row's sum and output refer to a *reference*, a power of two that
need only be near the largest score so far, and lags behind it (``templates/common/softmax.cuh``).
Here that is done in float32, with probabilities packed to the kernel's dtype. Windows hide first
keys of rows as a causal mask hides last ones; sinks join when a row is finished, or merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

#: As in ``templates/common/softmax.cuh``.
SLACK, OUTGROWN_SUM = np.float32(8), np.float32(1024)
MOST_SINK = np.float32(120)
NOTHING_SEEN = np.float32(-(2.0**100))


@dataclass
class Rows:
    """What a tile has of its rows between two steps.

    Attributes
    ----------
    reference : float32 array [rows]
        Base-2 logarithm of what sums and outputs refer to.
    total : float32 array [rows]
        Sums of the powers.
    out : float32 array [rows, head_dim]
        Sums of the values, weighted by them.
    """

    reference: Float32Array
    total: Float32Array
    out: Float32Array

    def raise_to(self, reference: Float32Array, rows: npt.NDArray[np.bool_]) -> None:
        """Raise the references of some rows where they are lower; what they refer to shrinks."""
        raised = np.where(rows, np.maximum(self.reference, reference), self.reference)
        shrink = np.exp2(self.reference - raised)
        self.reference, self.total = raised, self.total * shrink
        self.out = self.out * shrink[:, None]


@dataclass(frozen=True)
class Softmax:
    """A role's softmax; the base class raises all references in every step.

    Attributes
    ----------
    step_keys : int
        Keys of a step; steps go from the last keys to the first.
    rows_together : int
        Rows whose threads agree on whether to raise references: a warp's, or all of a tile.
    """

    step_keys: int
    rows_together: int

    def attend(
        self,
        scores: Float32Array,
        values: Float32Array,
        visible: IntArray,
        dtype: npt.DTypeLike,
        *,
        hidden: IntArray | None = None,
        tree: npt.NDArray[np.bool_] | None = None,
        sinks: Float32Array | None = None,
        kv_begin: int = 0,
        kv_end: int | None = None,
    ) -> tuple[Float32Array, Float32Array]:
        """Return normalised outputs [rows, head_dim] and base-2 log-sum-exps [rows].

        Parameters
        ----------
        scores : float32 array [rows, keys]
            Scaled by ``sm_scale * log2(e)``.
        values : float32 array [keys, head_dim]
            Values.
        visible : int array [rows]
            How many of the first keys a row sees; the first row sees fewest.
        dtype : dtype
            Of the probabilities as operands: bfloat16 or float16.
        hidden : int array [rows], optional
            How many of those keys come before a row's window; the first row's has fewest. None by
            default.
        tree : bool array [rows, new keys], optional
            Which of the last keys that `visible` counts, alike for all rows, each of them sees.
        sinks : float32 array [rows], optional
            In base 2, of an item that is not split.
        kv_begin, kv_end : int
            Keys of the item; all by default.
        """
        kv_end = len(values) if kv_end is None else kv_end
        limit = np.minimum(visible, kv_end)
        hidden = np.zeros_like(visible) if hidden is None else hidden
        sure_end = limit[0] if tree is None else min(limit[0], visible[0] - tree.shape[1])
        behind = (0, self.step_keys)  # rows of the last step that hold no key are zeros
        scores, values = np.pad(scores, ((0, 0), behind)), np.pad(values, (behind, (0, 0)))
        # And so are those of keys that no row sees, as they may hold anything.
        values[: max(hidden[0], 0)] = values[max(visible[-1], 0) :] = 0
        rows = self._begin(len(scores), values.shape[1])
        num_steps = -(-(kv_end - kv_begin) // self.step_keys)
        for step in reversed(range(num_steps)):
            first = kv_begin + step * self.step_keys
            keys = np.arange(first, first + self.step_keys)
            masked = bool(keys[-1] >= sure_end or keys[0] < hidden[-1])
            sees = (keys >= hidden[:, None]) & (keys < limit[:, None])
            if tree is not None:
                sees &= _seen_of(tree, keys - (visible[0] - tree.shape[1]))
            seen = np.where(sees, scores[:, keys], np.float32(-np.inf))
            powers = self.powers_of(rows, seen, exact=masked or step == num_steps - 1)
            rows.total = rows.total + powers.sum(1)
            rows.out = rows.out + powers.astype(dtype).astype(np.float32) @ values[keys]
        return _finished(rows, sinks)

    def _begin(self, count: int, head_dim: int) -> Rows:
        out, total = np.zeros((count, head_dim), np.float32), np.zeros(count, np.float32)
        return Rows(np.full(count, self.nothing_seen, np.float32), total, out)

    @property
    def nothing_seen(self) -> np.float32:
        """Reference of a row before its first key."""
        return NOTHING_SEEN

    def powers_of(self, rows: Rows, scores: Float32Array, *, exact: bool) -> Float32Array:
        """Return a step's powers, relative to references that are raised where need be."""
        rows.raise_to(scores.max(1), np.ones(len(scores), bool))
        return self.relative(rows, scores)

    def relative(self, rows: Rows, scores: Float32Array) -> Float32Array:
        """Return powers relative to the references as they are."""
        powers: Float32Array = np.exp2(scores - rows.reference[:, None])
        return powers

    def _any_together(self, rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return, for every row, whether one of those that decide together is marked."""
        groups = np.arange(len(rows)) // self.rows_together
        return np.isin(groups, groups[rows])


@dataclass(frozen=True)
class LaggingSoftmax(Softmax):
    """The Hopper family's: where no mask cuts a step, sums tell whether references were outgrown.

    Attributes
    ----------
    share_of : int array [step_keys]
        Number of the thread that adds up a key's power, of those that have a row.
    """

    share_of: IntArray

    def powers_of(self, rows: Rows, scores: Float32Array, *, exact: bool) -> Float32Array:
        """Return a step's powers; those of rows that have outgrown their reference exactly."""
        if exact:
            return super().powers_of(rows, scores, exact=True)
        powers = self.relative(rows, scores)
        shares = np.stack([powers[:, self.share_of == s].sum(1) for s in np.unique(self.share_of)])
        outgrown: Any = (shares > OUTGROWN_SUM).any(0)
        redone = self._any_together(outgrown)
        rows.raise_to(scores.max(1), redone)
        return np.where(redone[:, None], self.relative(rows, scores), powers)


@dataclass(frozen=True)
class SlackSoftmax(Softmax):
    """The portable family's: maxima tell whether references were outgrown by 2^SLACK."""

    def powers_of(self, rows: Rows, scores: Float32Array, *, exact: bool) -> Float32Array:
        """Return a step's powers, after raising references where a row in its warp needs it."""
        outgrown: Any = scores.max(1) - rows.reference > SLACK
        rows.raise_to(scores.max(1), self._any_together(outgrown))
        return self.relative(rows, scores)


def hopper_decode(rows: int, tiles: int = 2) -> LaggingSoftmax:
    """Return the softmax of a decode tile of some rows: `tiles` x 64 keys a step.

    A thread has keys 16 warp + lane / 4 + {0, 8} of every tile, and all warps decide together.
    """
    key = np.arange(64 * tiles) % 64
    return LaggingSoftmax(len(key), rows, key // 16 * 8 + key % 8)


def hopper_prefill(kv_tile: int) -> LaggingSoftmax:
    """Return the softmax of a prefill tile; a thread has keys 8n + 2 (lane % 4) + {0, 1}."""
    return LaggingSoftmax(kv_tile, 16, np.arange(kv_tile) % 8 // 2)


def portable(kv_tile: int, warp_rows: int = 16) -> SlackSoftmax:
    """Return the softmax of the portable family's tiles, of 16 or 32 rows a warp."""
    return SlackSoftmax(kv_tile, warp_rows)


def merge_splits(
    outs: list[Float32Array], lses: list[Float32Array], sinks: Float32Array | None = None
) -> tuple[Float32Array, Float32Array]:
    """Merge the splits of a tile as ``templates/common/merge.cuh`` does; results as `attend`'s."""
    out, lse = np.stack(outs), np.stack(lses)
    reference = np.maximum(NOTHING_SEEN, lse.max(0))
    weights = np.exp2(lse - reference)
    merged = Rows(reference, weights.sum(0), (weights[:, :, None] * out).sum(0))
    return _finished(merged, sinks)


def soft_capped(scores: Float32Array, to_exponent: float) -> Float32Array:
    """Return tanh as ``templates/common/soft_cap.cuh`` takes it, of one score by itself.

    Parameters
    ----------
    scores : float32 array
        Raw scores.
    to_exponent : float
        ``2 log2(e) sm_scale / cap``.
    """
    powers = np.exp2(scores * np.float32(to_exponent))
    capped: Float32Array = np.float32(1) - np.float32(2) * (
        np.float32(1) / (np.float32(1) + powers)
    )
    return capped


def soft_capped_together(scores: Float32Array, to_exponent: float) -> Float32Array:
    """Return the same of ``[..., 4]`` scores, each four with one reciprocal."""
    powers = np.exp2(np.minimum(scores * np.float32(to_exponent), np.float32(30)))
    d = np.float32(1) + powers
    pairs = d[..., ::2] * d[..., 1::2]
    of_pairs = (np.float32(1) / pairs.prod(-1, keepdims=True)) * pairs[..., ::-1]
    inverse = np.repeat(of_pairs, 2, -1) * d[..., [1, 0, 3, 2]]
    capped: Float32Array = np.float32(1) - np.float32(2) * inverse
    return capped


def _seen_of(tree: npt.NDArray[np.bool_], new: IntArray) -> npt.NDArray[np.bool_]:
    """Return whether rows see keys by their numbers among the new ones; older ones they do."""
    inside = (new >= 0) & (new < tree.shape[1])
    seen: npt.NDArray[np.bool_] = tree[:, np.where(inside, new, 0)] | ~inside
    return seen


def _finished(rows: Rows, sinks: Float32Array | None) -> tuple[Float32Array, Float32Array]:
    seen = rows.total > 0
    total: Any = np.where(seen, rows.total, np.float32(1))
    lse = np.where(seen, rows.reference + np.log2(total), np.float32(-np.inf))
    if sinks is not None:
        total = total + np.exp2(np.minimum(sinks - rows.reference, MOST_SINK))
    out = np.where(seen[:, None], rows.out / total[:, None], np.float32(0))
    return out, lse
