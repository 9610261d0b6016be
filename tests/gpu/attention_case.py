"""Ragged batches with hostile memory around them, and the check of a result.

Everything that attention must not touch is poisoned: cache slots that hold no key, or one that lies
before all windows, and whole unused pages are NaN, page-table entries of such point far out,
outputs start as NaN. Pages are shuffled,
and q, k, v are slices of larger tensors, so that no stride is the obvious one.
"""

from dataclasses import dataclass, field
from functools import cached_property

import ml_dtypes
import numpy as np
from tree_support import random_words

from podrt.reference import reference_attention
from podrt.spec.batch import HybridBatch

#: One unit in the last place at 1.
STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
#: Below this numbers are as far apart as at it; sinks leave such rows.
SMALLEST = {"bfloat16": 2.0**-126, "float16": 2.0**-14}
#: Largest error allowed, in steps of the row's largest value: the weights and the result are each
#: rounded to the element type once, at up to half a step, twice over.
ALLOWED_STEPS = 2
#: Relative to 1 + |LSE|: scores are sums of head_dim products in float32.
LSE_TOLERANCE = 1e-5
#: Of capped scores, relative to the cap (common/soft_cap.cuh).
CAP_TOLERANCE = 2.0**-20
NO_PAGE = 2_147_480_000
#: First element of every query of a case with a ramp of scores.
_RAMP_QUERY = 8.0
LOG2_E = 1.4426950408889634


@dataclass
class Case:
    """A batch with its tensors on the host.

    With `score_ramp` ``(first, last)`` the scores of every request, in base 2, go from the one to
    the other over its keys, and hardly differ otherwise.
    """

    q_lens: list[int]
    kv_lens: list[int]
    num_kv_heads: int = 2
    group: int = 4
    head_dim: int = 128
    v_head_dim: int | None = None
    dtype: str = "bfloat16"
    page_size: int | None = 16
    causal: bool = True
    sm_scale: float | None = None
    window_left: int | None = None
    logits_soft_cap: float | None = None
    has_sinks: bool = False
    has_trees: bool = False
    score_ramp: tuple[float, float] | None = None
    seed: int = 0
    q: np.ndarray = field(init=False)
    k_cache: np.ndarray = field(init=False)
    v_cache: np.ndarray = field(init=False)
    block_table: np.ndarray | None = field(init=False, default=None)
    sinks: np.ndarray | None = field(init=False, default=None)
    tree_mask: np.ndarray | None = field(init=False, default=None)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        tokens, heads = sum(self.q_lens), self.num_kv_heads * self.group
        # Some queries far longer than others: near-uniform and near-one-hot softmaxes.
        length = rng.choice([0.3, 1.0, 6.0], size=(tokens, heads, 1), p=[0.2, 0.6, 0.2])
        q = rng.standard_normal((tokens, heads, self.head_dim)) * length
        if self.score_ramp is not None:
            q *= 0.02
            q[..., 0] = _RAMP_QUERY
        self.q = self._round(q)
        if self.page_size is None:
            self._fill_contiguous(rng)
        else:
            self._fill_pages(rng)
        if self.has_sinks:
            self.sinks = (3 * rng.standard_normal(heads)).astype(np.float32)
        if self.has_trees:
            self.tree_mask = random_words(rng, self.q_lens)

    @property
    def qo_indptr(self):
        return np.concatenate(([0], np.cumsum(self.q_lens))).astype(np.int32)

    @property
    def num_qo_heads(self):
        return self.num_kv_heads * self.group

    @property
    def layer_arguments(self):
        return {
            "num_qo_heads": self.num_qo_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "v_head_dim": self.v_head_dim,
            "page_size": self.page_size,
            "dtype": self.dtype,
            "causal": self.causal,
            "sm_scale": self.sm_scale,
            "window_left": self.window_left,
            "logits_soft_cap": self.logits_soft_cap,
            "tree_mask": self.has_trees,
        }

    @property
    def out_shape(self):
        return (*self.q.shape[:2], self.v_head_dim or self.head_dim)

    @property
    def lengths(self):
        return self.qo_indptr, np.array(self.kv_lens, np.int32)

    @property
    def scale(self):
        return self.head_dim**-0.5 if self.sm_scale is None else self.sm_scale

    @cached_property
    def expected(self):
        """Out and LSE of the float64 reference."""
        table = None
        if self.page_size is None:
            batch = HybridBatch.contiguous(*self.lengths)
        else:
            table = self.block_table.reshape(-1)
            batch = HybridBatch.from_block_table(
                *self.lengths,
                shape=self.block_table.shape,
                row_stride=self.block_table.shape[1],
                page_size=self.page_size,
            )
        return reference_attention(
            self.q,
            self.k_cache,
            self.v_cache,
            batch,
            page_table=table,
            page_size=self.page_size,
            causal=self.causal,
            sm_scale=self.sm_scale,
            window_left=self.window_left,
            logits_soft_cap=self.logits_soft_cap,
            sinks=self.sinks,
            tree_mask=self.tree_mask,
        )

    def check(self, out, lse=None, rows=slice(None), allowed_steps=ALLOWED_STEPS):
        """Compare host arrays of `rows` with the reference; return the errors of both.

        That of `out` is in steps, that of the LSE relative to 1 + |LSE|.
        """
        expected, expected_lse = (array[rows] for array in self.expected)
        out = out.astype(np.float64)
        assert out.shape == expected.shape
        assert not np.isnan(out).any(), f"NaN in rows {np.unique(np.argwhere(np.isnan(out))[:, 0])}"
        largest = np.abs(expected).max(axis=2, initial=0)
        error = np.abs(out - expected).max(axis=2, initial=0)
        assert (error[largest == 0] == 0).all(), "a row that sees no key must be zero"
        steps = error / np.maximum(largest, SMALLEST[self.dtype]) / STEP[self.dtype]
        worst = np.unravel_index(np.argmax(steps), steps.shape) if steps.size else None
        assert steps.max(initial=0) <= allowed_steps, f"{steps.max()} steps at row, head {worst}"
        return float(steps.max(initial=0)), self._check_lse(lse, expected_lse)

    def _check_lse(self, lse, expected):
        if lse is None:
            return 0.0
        assert lse.shape == expected.shape
        empty = np.isneginf(expected)
        assert (np.isneginf(lse) == empty).all()
        allowed = LSE_TOLERANCE * (1 + np.abs(expected[~empty]))
        allowed += CAP_TOLERANCE * (self.logits_soft_cap or 0.0)
        errors = np.abs(lse - expected)[~empty]
        assert (errors <= allowed).all(), f"LSE off by {(errors / allowed).max()} of what may be"
        errors /= 1 + np.abs(expected[~empty])
        return float(errors.max(initial=0))

    def _round(self, values):
        dtype = ml_dtypes.bfloat16 if self.dtype == "bfloat16" else np.float16
        return values.astype(np.float32).astype(dtype)

    def _fill_contiguous(self, rng):
        room = max(self.kv_lens, default=0) + 3
        caches = np.full((2, len(self.kv_lens) + 1, room, *self._row), np.nan, np.float32)
        for request, length in enumerate(self.kv_lens):
            caches[:, request, :length] = self._keys(rng, length)
            caches[:, request, : self._num_hidden(request)] = np.nan
        self._take(caches)

    def _fill_pages(self, rng):
        pages = [-(-length // self.page_size) for length in self.kv_lens]
        numbers = rng.permutation(sum(pages) + 5)
        self.block_table = np.full((len(pages), max(pages, default=0) + 2), NO_PAGE, np.int32)
        caches = np.full((2, len(numbers), self.page_size, *self._row), np.nan, np.float32)
        used = 0
        for request, (length, count) in enumerate(zip(self.kv_lens, pages, strict=True)):
            mine = numbers[used : used + count]
            hidden = self._num_hidden(request)
            self.block_table[request, :count] = mine
            self.block_table[request, : hidden // self.page_size] = NO_PAGE
            used += count
            keys = np.full((2, count * self.page_size, *self._row), np.nan, np.float32)
            keys[:, :length] = self._keys(rng, length)
            keys[:, :hidden] = np.nan
            caches[:, mine] = keys.reshape(2, count, self.page_size, *self._row)
        self._take(caches)

    def _take(self, caches):
        self.k_cache, values = self._round(caches)
        self.v_cache = np.ascontiguousarray(values[..., : self.v_head_dim])

    def _num_hidden(self, request):
        """Keys of a request that lie before the window of each of its tokens."""
        if self.window_left is None:
            return 0
        return max(self.kv_lens[request] - self.q_lens[request] - self.window_left, 0)

    def _keys(self, rng, length):
        """Keys and values of a request: [2, length, num_kv_heads, head_dim]."""
        keys = rng.standard_normal((2, length, *self._row))
        if self.score_ramp is not None:
            scores = np.linspace(*self.score_ramp, length)
            keys[0, :, :, 0] = (scores / (_RAMP_QUERY * self.scale * LOG2_E))[:, None]
        return keys

    @property
    def _row(self):
        return (self.num_kv_heads, self.head_dim)


def to_gpu(array):
    """Copy an array to the GPU, bfloat16 included."""
    import cupy

    return cupy.asarray(array.view(np.uint16)).view(array.dtype)


def inside_larger(array, axis):
    """Return `array` as a strided slice of a GPU tensor whose other elements are NaN."""
    import cupy

    shape = list(array.shape)
    shape[axis] *= 2
    larger = cupy.full(shape, 0x7FFF, np.uint16)  # NaN in both element types
    window = tuple(slice(None, None, 2) if i == axis else slice(None) for i in range(array.ndim))
    larger[window] = cupy.asarray(array.view(np.uint16))
    return larger.view(array.dtype)[window]


def poisoned(shape, dtype):
    """Return a GPU tensor full of NaN."""
    import cupy

    if dtype == np.float32:
        return cupy.full(shape, np.nan, np.float32)
    return cupy.full(shape, 0x7FFF, np.uint16).view(dtype)


def run(case, attention, *, strided=True, **arguments):
    """Plan and run a case into poisoned outputs; return host copies of out and lse."""
    import cupy

    tables = {} if case.page_size is None else {"block_table": cupy.asarray(case.block_table)}
    if case.tree_mask is not None:
        tables["tree_mask"] = cupy.asarray(case.tree_mask)
    attention.plan(*case.lengths, **tables)
    place = (lambda array, axis: inside_larger(array, axis)) if strided else lambda a, _: to_gpu(a)
    out = poisoned(case.out_shape, case.q.dtype)
    lse = poisoned(case.q.shape[:2], np.float32)
    if case.sinks is not None:
        arguments = {"sinks": cupy.asarray(case.sinks), **arguments}
    attention.run(
        place(case.q, 1),
        place(case.k_cache, 1),
        place(case.v_cache, 2),
        out=out,
        lse=lse,
        **arguments,
    )
    return out.get(), lse.get()
