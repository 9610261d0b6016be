"""`Case`: one hybrid batch to be measured, as plain lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from podrt.spec.attention import AttentionSpec, make_spec
from podrt.spec.mask import Mask
from podrt.spec.types import ELEMENT_BYTES, DType
from podrt.workloads.accuracy import Window, windows_at_ends
from podrt.workloads.lengths import describe_lengths

Side = Literal["both", "prefill", "decode"]


@dataclass(frozen=True)
class Case:
    """One batch: prefills first, then decodes.

    Attributes
    ----------
    name : str
        Different for every case of a suite; the part before the first ``/`` is its group.
    num_qo_heads, num_kv_heads, head_dim, dtype
        The attention layer.
    page_size : int or None
        Tokens of a page; None for a contiguous cache.
    prefill : tuple of (q_len, kv_len)
        Prefill chunks; kv_len counts the chunk.
    decode : tuple of int
        Keys of every decode.
    policies : tuple of str
        podrt's policies to measure beside the contenders that every case has.
    window_left, logits_soft_cap
        As of `podrt.HybridAttention`; None has none.
    sinks : bool
        Whether every query head has a sink.
    v_head_dim : int or None
        As of `podrt.HybridAttention`.
    causal : bool
        As of `podrt.HybridAttention`.
    trees : bool
        Whether the tokens of requests that have few are a random tree each.
    """

    name: str
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    page_size: int | None
    prefill: tuple[tuple[int, int], ...]
    decode: tuple[int, ...]
    policies: tuple[str, ...] = ()
    window_left: int | None = None
    logits_soft_cap: float | None = None
    sinks: bool = False
    v_head_dim: int | None = None
    causal: bool = True
    trees: bool = False

    def __post_init__(self) -> None:
        if not (self.prefill or self.decode):
            raise ValueError(f"case {self.name!r} has neither prefill nor decode")
        for q_len, kv_len in self.prefill:
            if not 1 <= q_len <= kv_len:
                raise ValueError(
                    f"case {self.name!r}: prefill [{q_len}, {kv_len}] must be [q_len, kv_len] "
                    "with 1 <= q_len <= kv_len"
                )
        if min(self.decode, default=1) < 1:
            raise ValueError(f"case {self.name!r}: a decode has {min(self.decode)} keys, not 1+")

    @classmethod
    def of(
        cls,
        lengths: Sequence[tuple[int, int]],
        layer: AttentionSpec,
        *,
        name: str | None = None,
        policies: tuple[str, ...] = (),
    ) -> Case:
        """Return the case of ``(q_len, kv_len)`` requests of a layer, prefills first.

        Without a name it has that of its lengths, in that order.
        """
        prefill, decode = split_lengths(lengths)
        return cls(
            name or describe_lengths([*prefill, *((1, kv_len) for kv_len in decode)]),
            layer.num_qo_heads,
            layer.num_kv_heads,
            layer.head_dim,
            layer.dtype,
            layer.page_size,
            prefill,
            decode,
            policies,
            layer.mask.window_left,
            layer.logits_soft_cap,
            v_head_dim=layer.v_head_dim,
            causal=layer.mask.causal,
            trees=layer.mask.tree,
        )

    @property
    def is_plain(self) -> bool:
        """Whether scores are scaled products under a causal mask, of values as wide as keys."""
        plain = self.window_left is None and self.logits_soft_cap is None and not self.sinks
        return plain and self.value_dim == self.head_dim and self.causal and not self.trees

    @property
    def value_dim(self) -> int:
        """Elements of a head of the values and of the output."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def is_hybrid(self) -> bool:
        """Whether it has both prefill and decode."""
        return bool(self.prefill and self.decode)

    @property
    def q_lens(self) -> tuple[int, ...]:
        """Query tokens of every request."""
        return tuple(q_len for q_len, _ in self.lengths)

    @property
    def qo_indptr(self) -> npt.NDArray[np.int32]:
        """First row of each request in q, int32 ``[requests + 1]``."""
        return np.concatenate(([0], np.cumsum(self.q_lens))).astype(np.int32)

    @property
    def kv_lens(self) -> tuple[int, ...]:
        """Keys of every request."""
        return tuple(kv_len for _, kv_len in self.lengths)

    @property
    def prefill_tokens(self) -> int:
        """Query tokens of the prefills, the first rows of q."""
        return sum(q_len for q_len, _ in self.prefill)

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """``(q_len, kv_len)`` of every request."""
        return self.prefill + tuple((1, kv_len) for kv_len in self.decode)

    def checked_windows(self) -> list[Window]:
        """Return what is checked: the ends of the first and the last request of each side."""
        prefills, total = len(self.prefill), len(self.lengths)
        sides = [side for side in ((0, prefills), (prefills, total)) if side[0] < side[1]]
        chosen = sorted({request for begin, end in sides for request in (begin, end - 1)})
        return [
            window
            for request in chosen
            for window in windows_at_ends(request, self.lengths[request][0])
        ]

    def spec(self) -> AttentionSpec:
        """Return the attention layer; raises as `podrt.HybridAttention`."""
        heads = self.num_qo_heads, self.num_kv_heads
        return make_spec(
            *heads,
            self.head_dim,
            self.page_size,
            "NHD",
            self.dtype,
            self.causal,
            window_left=self.window_left,
            logits_soft_cap=self.logits_soft_cap,
            tree_mask=self.trees,
            v_head_dim=self.v_head_dim,
        )

    def flops(self, side: Side = "both") -> int:
        """Floating-point operations: two products, two each per pair; trees count as chains."""
        requests = tuple(self._requests(side))
        pairs = sum(_pairs(*lengths, self.window_left) for lengths in requests)
        if not self.causal:
            pairs += sum(q_len * (q_len - 1) // 2 for q_len, _ in requests)
        return 2 * self.num_qo_heads * (self.head_dim + self.value_dim) * pairs

    def min_bytes(self, side: Side = "both") -> int:
        """Bytes that must move: seen keys, their values and queries read, outputs written, once."""
        seen_keys = Mask(window_left=self.window_left).seen_keys
        rows = sum(
            q * self.num_qo_heads + int(seen_keys(q, kv)) * self.num_kv_heads
            for q, kv in self._requests(side)
        )
        return rows * (self.head_dim + self.value_dim) * ELEMENT_BYTES[self.dtype]

    def _requests(self, side: Side) -> Iterable[tuple[int, int]]:
        requests, prefills = self.lengths, len(self.prefill)
        return {"both": requests, "prefill": requests[:prefills], "decode": requests[prefills:]}[
            side
        ]


def split_lengths(
    lengths: Iterable[tuple[int, int]],
) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Return the prefills among ``(q_len, kv_len)`` requests, and the keys of the decodes."""
    requests = tuple(lengths)
    return (
        tuple((q_len, kv_len) for q_len, kv_len in requests if q_len > 1),
        tuple(kv_len for q_len, kv_len in requests if q_len == 1),
    )


def _pairs(q_len: int, kv_len: int, window_left: int | None) -> int:
    """Return how many keys the tokens of a request see, all together, under a causal mask."""
    pairs = q_len * (kv_len - q_len) + q_len * (q_len + 1) // 2
    if window_left is None:
        return pairs
    # The last token does not see `hidden` keys, those before it one less each.
    hidden = max(kv_len - 1 - window_left, 0)
    least = max(hidden - q_len, 0)
    return pairs - (hidden * (hidden + 1) - least * (least + 1)) // 2
