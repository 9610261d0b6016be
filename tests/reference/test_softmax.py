"""The kernels' softmax recurrences: every row right, whatever it sees of which step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tree_support import random_mask, random_tree

from podrt.jit import templates_dir
from podrt.reference import softmax as model
from podrt.reference.softmax import (
    LaggingSoftmax,
    Rows,
    Softmax,
    hopper_decode,
    hopper_prefill,
    merge_splits,
    portable,
)

DTYPES = {"bfloat16": (np.dtype(ml_dtypes.bfloat16), 2.0**-8), "float16": (np.float16, 2.0**-11)}
#: Roles with what is as coarse in each: steps of 128, 112, 176 and 64 keys.
ROLES = {
    "decode 8": hopper_decode(8),
    "decode 32": hopper_decode(32),
    "prefill 112": hopper_prefill(112),
    "prefill 176": hopper_prefill(176),
    "portable 64": portable(64, warp_rows=32),
    "portable 16": portable(16),
}
HEAD_DIM = 8

# Not an error where a row has seen nothing: powers of masked or far larger scores.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero)")


def scores_of(kind: str, rows: int, keys: int) -> np.ndarray:
    """Scores in base 2, of the kinds that tell the rules apart."""
    rng = np.random.default_rng(keys)
    noise = rng.standard_normal((rows, keys))
    earlier = np.arange(keys)[::-1]  # steps go from the last key to the first
    made: dict[str, Any] = {
        "small": noise,
        "large": 20 * noise,
        "low": noise / 16 - 45,  # float16 has no such powers
        "high": noise / 16 + 300,
        "growing slowly": 7.2 + 2.3 * earlier / keys + noise / 64,
        "growing": earlier / 8 + noise,
        "falling": -earlier / 8 + noise,
        "one high": np.where(earlier == keys // 2, 40, noise),
    }
    return made[kind].astype(np.float32)


KINDS = ("small", "large", "low", "high", "growing slowly", "growing", "falling", "one high")


def exact(
    scores: np.ndarray,
    values: np.ndarray,
    visible: np.ndarray,
    hidden: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
) -> tuple[Any, Any]:
    """Outputs and base-2 log-sum-exps in float64; what no row sees may be NaN."""
    keys = np.arange(len(values))
    sees = keys < visible[:, None]
    if hidden is not None:
        sees &= keys >= hidden[:, None]
    masked = np.where(sees, scores.astype(np.float64), -np.inf)
    largest = np.maximum(masked.max(1, initial=-np.inf), -1e300)
    powers = np.exp2(masked - largest[:, None])
    total = powers.sum(1)
    seen = total > 0
    lse = np.where(seen, largest + np.log2(np.where(seen, total, 1)), -np.inf)
    if sinks is not None:
        total = total + np.where(seen, np.exp2(sinks - largest), 1)
    values = np.where(sees.any(0)[:, None], values, 0)
    return np.where(seen[:, None], powers @ values / np.where(seen, total, 1)[:, None], 0), lse


def error_of(
    role: Softmax, kind: str, dtype: str, q_len: int, kv_len: int, group: int = 1, **item: int
) -> float:
    """Largest error of outputs and log-sum-exps, in units of what the dtype allows."""
    visible = np.repeat(kv_len - q_len + 1 + np.arange(q_len), group)
    scores = scores_of(kind, len(visible), kv_len)
    values = np.random.default_rng(1).standard_normal((kv_len, HEAD_DIM)).astype(np.float32)
    got = role.attend(scores, values, visible, DTYPES[dtype][0], **item)
    return difference(got, exact(scores, values, visible), dtype)


def difference(got: tuple[Any, Any], expected: tuple[Any, Any], dtype: str) -> float:
    allowed = 4 * DTYPES[dtype][1]
    nothing = np.isneginf(expected[1])
    if not np.array_equal(np.isneginf(got[1]), nothing):
        return np.inf
    out = np.abs(got[0] - expected[0]).max(initial=0)
    lse = np.abs(np.where(nothing, 0, got[1] - np.where(nothing, 0, expected[1]))).max(initial=0)
    return float(max(out, lse) / allowed)


def edges(step: int) -> list[int]:
    """Lengths at, before and after the first multiples of a step."""
    return [n * step + d for n in (1, 2, 3) for d in (-1, 0, 1, 2, 5, 7)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_right_at_every_edge(role: str, kind: str, dtype: str) -> None:
    for kv_len in edges(ROLES[role].step_keys):
        for q_len in (1, 2, 3, 8):
            assert error_of(ROLES[role], kind, dtype, q_len, kv_len) <= 1, (q_len, kv_len)


@pytest.mark.parametrize("role", ROLES)
def test_rows_that_see_nothing_of_several_steps(role: str) -> None:
    step = ROLES[role].step_keys
    for q_len in (2 * step + 3, 3 * step):
        assert error_of(ROLES[role], "growing", "bfloat16", q_len, 3 * step) <= 1
        # As many keys as tokens, and fewer: the first rows see none at all.
        assert error_of(ROLES[role], "small", "bfloat16", 3 * step + 5, 3 * step) <= 1


@pytest.mark.parametrize("role", ROLES)
def test_splits_may_be_empty_for_some_rows_or_all(role: str) -> None:
    """Also those behind the last key, as an exact length from the device leaves them."""
    step, q_len = ROLES[role].step_keys, 5
    for kv_len in (1, step, step + 1, 2 * step + 3):
        visible = kv_len - q_len + 1 + np.arange(q_len)
        scores = scores_of("growing", q_len, kv_len)
        values = np.random.default_rng(1).standard_normal((kv_len, HEAD_DIM)).astype(np.float32)
        planned = [(begin, begin + step) for begin in range(0, 4 * step, step)]
        items = [(begin, max(begin, min(end, kv_len))) for begin, end in planned]
        parts = [
            ROLES[role].attend(scores, values, visible, np.float16, kv_begin=begin, kv_end=end)
            for begin, end in items
        ]
        merged = merge_splits([out for out, _ in parts], [lse for _, lse in parts])
        assert difference(merged, exact(scores, values, visible), "float16") <= 1


@pytest.mark.parametrize("role", [name for name in ROLES if not name.startswith("prefill")])
@pytest.mark.parametrize("kind", KINDS)
def test_trees_hide_new_keys_at_every_edge(role: str, kind: str) -> None:
    """Of whole items and split ones; rows may see nothing of the first step, or at all."""
    rng, step = np.random.default_rng(3), ROLES[role].step_keys
    for kv_len in edges(step):
        q_len = int(rng.integers(1, min(64, kv_len) + 1))
        sees = random_tree(rng, q_len) if kv_len % 2 else random_mask(rng, q_len)
        tree = sees[sorted(rng.integers(0, q_len, 8))]  # the rows of one of several tiles
        scores = scores_of(kind, 8, kv_len)
        values = rng.standard_normal((kv_len, HEAD_DIM)).astype(np.float32)
        visible = np.full(8, kv_len)
        expected = exact(
            np.where(
                np.pad(tree, ((0, 0), (kv_len - q_len, 0)), constant_values=True), scores, -np.inf
            ),
            values,
            visible,
        )
        parts = [
            ROLES[role].attend(
                scores, values, visible, np.float16, tree=tree, kv_begin=begin, kv_end=end
            )
            for begin, end in [(0, kv_len), *([(0, step), (step, kv_len)] if kv_len > step else [])]
        ]
        for some in (parts[:1], parts[1:] or parts):
            merged = merge_splits([out for out, _ in some], [lse for _, lse in some])
            assert difference(merged, expected, "float16") <= 1, (kv_len, q_len)


def windowed(
    role: Softmax,
    kind: str,
    q_len: int,
    kv_len: int,
    window_left: int,
    *,
    begin_at: int = 16,
    dtype: str = "bfloat16",
    split_keys: int | None = None,
    sinks: np.ndarray | None = None,
) -> float:
    """Largest error, as `error_of`'s, of a tile with a window; keys that no row sees are NaN.

    The item begins at a multiple of `begin_at`, as a piece of a page does, and may be split.
    """
    position = kv_len - q_len + np.arange(q_len)
    visible, hidden = position + 1, position - window_left
    scores = scores_of(kind, q_len, kv_len)
    values = np.random.default_rng(1).standard_normal((kv_len, HEAD_DIM)).astype(np.float32)
    first = max(hidden[0], 0)
    scores[:, :first] = np.nan
    values[:first] = np.nan
    begin = first // begin_at * begin_at
    ends = [*range(begin, kv_len, split_keys or kv_len), kv_len]
    parts = [
        role.attend(
            scores,
            values,
            visible,
            DTYPES[dtype][0],
            hidden=hidden,
            sinks=sinks if split_keys is None else None,
            kv_begin=b,
            kv_end=e,
        )
        for b, e in pairwise(ends)
    ]
    got = parts[0]
    if split_keys is not None:
        got = merge_splits([out for out, _ in parts], [lse for _, lse in parts], sinks)
    return difference(got, exact(scores, values, visible, hidden, sinks), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_right_at_every_edge(role: str, kind: str, dtype: str) -> None:
    step = ROLES[role].step_keys
    for kv_len in (1, step - 1, step, 2 * step + 1, 3 * step + 7):
        for q_len in (1, 2, 8):
            for window_left in (0, 1, 17, step - 1, step, 2 * step - 3):
                case = q_len, kv_len, window_left
                assert windowed(ROLES[role], kind, *case, dtype=dtype) <= 1, case


@pytest.mark.parametrize("begin_at", [16, 64])
@pytest.mark.parametrize("window_left", [0, 3, 40, 200])
@pytest.mark.parametrize("role", ROLES)
def test_rows_see_only_the_first_a_middle_or_the_last_step(
    role: str, window_left: int, begin_at: int
) -> None:
    """Tokens of a tile stand up to three steps apart, and windows are shorter than that."""
    step = ROLES[role].step_keys
    for q_len in (step + 1, 2 * step + 3, 3 * step):
        for kv_len in (q_len, q_len + 5, 4 * step - 1, 4 * step + 9):
            case = q_len, kv_len, window_left
            for kind in ("growing", "falling", "low"):
                error = windowed(ROLES[role], kind, *case, begin_at=begin_at)
                assert error <= 1, (kind, case)


@pytest.mark.parametrize("role", ROLES)
def test_rows_with_a_window_and_fewer_keys_than_tokens(role: str) -> None:
    step = ROLES[role].step_keys
    for window_left in (0, 5, step):
        assert windowed(ROLES[role], "small", step + 9, step, window_left) <= 1
        assert windowed(ROLES[role], "large", 8, 3, window_left) <= 1


@pytest.mark.parametrize("role", ROLES)
def test_splits_of_windows_are_merged_with_sinks(role: str) -> None:
    step = ROLES[role].step_keys
    sinks = np.array([-np.inf, -80.0, 0.0, 4.0, 300.0], np.float32)
    for kv_len, window_left in ((2 * step + 3, step), (3 * step, 2 * step + 5), (step, 10 * step)):
        for split_keys in (None, step, 2 * step):
            error = windowed(
                ROLES[role], "growing", 5, kv_len, window_left, split_keys=split_keys, sinks=sinks
            )
            assert error <= 1, (kv_len, window_left, split_keys)


@pytest.mark.parametrize(("sink", "expected"), [(-np.inf, 1), (-1e30, 1), (1e30, 0), (np.inf, 0)])
def test_a_sink_leaves_log_sum_exps_alone_and_rows_without_keys_zero(
    sink: float, expected: float
) -> None:
    role = hopper_decode(8)
    sinks = np.full(5, sink, np.float32)
    visible = np.array([0, 0, 1, 2, 3])
    scores = scores_of("small", 5, 3)
    values = np.ones((3, HEAD_DIM), np.float32)
    plain = role.attend(scores, values, visible, np.float16)
    out, lse = role.attend(scores, values, visible, np.float16, sinks=sinks)
    assert np.array_equal(lse, plain[1])
    assert not out[:2].any()
    assert np.isneginf(lse[:2]).all()
    assert np.allclose(out[2:], expected, atol=1e-3)
    merged = merge_splits([plain[0]], [plain[1]], sinks)
    assert np.allclose(merged[0], out, atol=1e-3)
    assert np.array_equal(merged[1], lse)


@pytest.mark.parametrize("cap", [0.5, 20.0, 50.0, 1000.0])
@pytest.mark.parametrize("spread", [1.0, 30.0, 1e4])
def test_capped_scores_are_right_to_2_to_the_minus_20_of_the_cap(cap: float, spread: float) -> None:
    scores = (np.random.default_rng(0).standard_normal((500, 4)) * spread).astype(np.float32)
    scores[0] = [-np.inf, np.inf, 0.0, -0.0]
    to_exponent = 2 / np.log(2) / cap
    expected = np.tanh(scores.astype(np.float64) / cap)
    for capped in (model.soft_capped, model.soft_capped_together):
        assert np.abs(capped(scores, to_exponent) - expected).max() <= 2.0**-20


def test_a_nan_spreads_only_among_scores_that_are_capped_together() -> None:
    """So masked steps, where hidden keys may hold NaN, cap every score by itself."""
    scores = np.array([[1, np.nan, 2, 3], [1, 2, 3, 4]], np.float32)
    assert np.isnan(model.soft_capped(scores, 1.0)).tolist() == np.isnan(scores).tolist()
    assert np.isnan(model.soft_capped_together(scores, 1.0)).tolist() == [[True] * 4, [False] * 4]


@dataclass(frozen=True)
class StartsAtInfinity(LaggingSoftmax):
    """The rule before: a reference of -inf, which stands for 0 wherever powers are taken."""

    @property
    def nothing_seen(self) -> np.float32:
        return np.float32(-np.inf)

    def powers_of(self, rows: Rows, scores: np.ndarray, *, exact: bool) -> Any:
        return super().powers_of(_Finite(rows), scores, exact=exact)

    def relative(self, rows: Rows, scores: np.ndarray) -> Any:
        return np.exp2(scores - _finite(rows.reference)[:, None])


class _Finite:
    """Rows whose factors are finite too."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @property
    def reference(self) -> np.ndarray:
        return self._rows.reference

    def raise_to(self, reference: np.ndarray, which: np.ndarray) -> None:
        rows = self._rows
        raised = np.where(which, np.maximum(rows.reference, reference), rows.reference)
        shrink = np.where(which, np.exp2(rows.reference - _finite(raised)), 1)
        rows.reference, rows.total = raised, rows.total * shrink
        rows.out = rows.out * shrink[:, None]


def _finite(reference: np.ndarray) -> np.ndarray:
    return np.where(np.isneginf(reference), np.float32(0), reference)


@pytest.mark.parametrize(
    ("kind", "dtype", "q_len", "kv_len"),
    [
        ("small", "bfloat16", 2, 129),
        ("growing slowly", "bfloat16", 2, 513),
        ("low", "float16", 2, 257),
    ],
)
def test_the_rule_before_fails_where_a_row_sees_none_of_the_first_step(
    kind: str, dtype: str, q_len: int, kv_len: int
) -> None:
    now = hopper_decode(8)
    before = StartsAtInfinity(now.step_keys, now.rows_together, now.share_of)
    assert error_of(before, kind, dtype, q_len, kv_len) > 4
    assert error_of(now, kind, dtype, q_len, kv_len) <= 1
    assert error_of(before, kind, dtype, 1, kv_len) <= 1  # every row sees some of every step


@dataclass(frozen=True)
class WithStrangers(LaggingSoftmax):
    """A prefill tile whose last rows are not the request's, from a reference that none outgrows."""

    existing: int = 5

    def _begin(self, count: int, head_dim: int) -> Rows:
        rows = super()._begin(count, head_dim)
        rows.reference[self.existing :] = -model.NOTHING_SEEN
        return rows


@pytest.mark.parametrize("kind", KINDS)
def test_rows_behind_the_last_of_a_request_change_none_of_it(kind: str) -> None:
    usual, keys = hopper_prefill(112), 1000
    role = WithStrangers(usual.step_keys, usual.rows_together, usual.share_of)
    values = np.random.default_rng(0).standard_normal((keys, HEAD_DIM)).astype(np.float32)
    scores, visible = scores_of(kind, 16, keys), np.full(16, keys)
    alone = usual.attend(scores[:5], values, visible[:5], np.float16)
    results = []
    for strangers in (0.0, np.nan, np.inf, -np.inf, scores_of("growing", 16, keys)[5:]):
        scores[5:] = strangers
        results.append(role.attend(scores, values, visible, np.float16))
    for got in results:
        for result, first, expected in zip(got, results[0], alone, strict=True):
            np.testing.assert_array_equal(result[:5], first[:5])
            # Products of 5 rows and of 16 may add up in different orders.
            np.testing.assert_allclose(result[:5], expected, rtol=1e-6, atol=1e-6)


def test_model_has_the_constants_of_the_kernels() -> None:
    header = (templates_dir() / "common" / "softmax.cuh").read_text(encoding="utf-8")
    for name, value in (
        ("kSlack", model.SLACK),
        ("kOutgrownSum", model.OUTGROWN_SUM),
        ("kNothingSeen", model.NOTHING_SEEN),
        ("kMostSink", model.MOST_SINK),
    ):
        (text,) = re.findall(rf"constexpr float {name} = (.+)f;", header)
        number = float.fromhex(text) if "x" in text else float(text)
        assert np.float32(number) == value


@pytest.mark.parametrize("sm_scale", [*(dim**-0.5 for dim in (64, 128, 256)), 1e-3, 0.3, 1e8])
def test_the_lowest_reference_times_a_scale_is_exact(sm_scale: float) -> None:
    """Prefill keeps maxima unscaled: max * scale - reference, fused, must be 0 and not 1e22."""
    scale = np.float32(sm_scale * np.log2(np.e))
    exact = np.float64(model.NOTHING_SEEN) * np.float64(scale)
    assert np.float64(np.float32(exact)) == exact
    assert np.isfinite(np.float32(exact))
