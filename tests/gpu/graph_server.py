"""A layer as an engine serves it: a reserved object, a graph for each padded number of tokens.

The cache, q, out and lse keep their addresses; a batch is written into them on the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cupy
import numpy as np
from attention_case import Case, poisoned
from gpu_support import POISON

from podrt import HybridAttention

LIMITS = {"max_requests": 24, "max_tokens": 256, "max_kv_len": 3000, "max_decode_tokens": 2}
SIZES = (64, 256)
PAGE_SIZE = 16
#: Tokens of the cache: enough for any batch of `random_lengths`.
NUM_TOKENS = 2400 * PAGE_SIZE


@dataclass
class Server:
    """A reserved object and its captured graphs.

    Attributes
    ----------
    layer : dict
        Arguments of `attention_case.Case`; pages have `PAGE_SIZE` tokens unless it says otherwise.
    graphs : dict of (padded tokens, decodes_only) to graph
    """

    policy: str
    layer: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=lambda: dict(LIMITS))
    workspace: Any = None
    stream: Any = None
    table_on: str = "gpu"

    def __post_init__(self):
        case = self.case([], [])
        self.attention = HybridAttention(**case.layer_arguments, policy=self.policy)
        self.stream = self.stream or cupy.cuda.Stream(non_blocking=True)
        self.attention.reserve(**self.limits, workspace=self.workspace, stream=self.stream)
        tokens, dtype = self.limits["max_tokens"], case.q.dtype
        self.q = poisoned((tokens, case.num_qo_heads, case.head_dim), dtype)
        self.out = poisoned((tokens, *case.out_shape[1:]), dtype)
        self.lse = poisoned(self.q.shape[:2], np.float32)
        num_pages = -(-NUM_TOKENS // case.page_size)
        caches = case.k_cache, case.v_cache
        self.k, self.v = (poisoned((num_pages, *cache.shape[1:]), dtype) for cache in caches)
        self.sinks = poisoned(case.num_qo_heads, np.float32) if case.has_sinks else None
        self.graphs = {}
        cupy.cuda.Device().synchronize()

    def case(self, q_lens, kv_lens, seed=0):
        return Case(q_lens, kv_lens, seed=seed, **{"page_size": PAGE_SIZE, **self.layer})

    def capture(self, size, *, decodes_only=False):
        """Capture a run over `size` rows, whatever is planned."""
        with self.stream:
            self.stream.begin_capture()
            self.attention.run(
                self.q[:size],
                self.k,
                self.v,
                out=self.out[:size],
                sinks=self.sinks,
                lse=self.lse[:size],
                decodes_only=decodes_only,
                stream=self.stream,
            )
            self.graphs[size, decodes_only] = self.stream.end_capture()

    def load(self, case):
        """Write a batch's tensors to where the graphs read them, NaN elsewhere."""
        for buffer, array in (
            (self.q, case.q),
            (self.k, case.k_cache),
            (self.v, case.v_cache),
        ):
            buffer.view(np.uint16).fill(POISON)
            if array.size:
                buffer.view(np.uint16)[: len(array)] = cupy.asarray(array.view(np.uint16))
        if self.sinks is not None:
            self.sinks[:] = cupy.asarray(case.sinks)
        self.out.view(np.uint16).fill(POISON)
        self.lse.fill(np.nan)

    def plan(self, case, **changes):
        """Plan with a page table at a new address, or in host memory."""
        on_gpu = self.table_on == "gpu"
        with self.stream:
            self.table = cupy.asarray(case.block_table) if on_gpu else case.block_table.copy()
        arguments = {"block_table": self.table, "stream": self.stream, **changes}
        self.attention.plan(*case.lengths, **arguments)
        if not on_gpu:
            self.table[:] = -1  # it was copied

    def replay(self, size, *, decodes_only=False):
        """Return out and lse of all rows."""
        with self.stream:
            self.graphs[size, decodes_only].launch(self.stream)
            return self.out.get(), self.lse.get()

    def step(self, case, size, *, decodes_only=False, **plan_changes):
        """Plan and replay a batch, and check it; rows beyond it must be as they were."""
        with self.stream:
            self.load(case)
            self.plan(case, **plan_changes)
        self.check(case, *self.replay(size, decodes_only=decodes_only))

    @staticmethod
    def check(case, out, lse):
        tokens = len(case.q)
        case.check(out[:tokens], lse[:tokens])
        assert (out[tokens:].view(np.uint16) == POISON).all()
        assert np.isnan(lse[tokens:]).all()


def random_lengths(rng, kind, size, limits=LIMITS):
    """Return q_lens and kv_lens of a batch within the limits, of at most `size` tokens."""
    if kind == "empty":
        return [], []
    requests = int(rng.integers(1, limits["max_requests"] + 1))
    most = {"decode": limits["max_decode_tokens"], "prefill": size, "mixed": size}[kind]
    q_lens, left = [], size
    for _ in range(requests):
        is_decode = kind == "decode" or (kind == "mixed" and rng.random() < 0.7)
        largest = min(left, limits["max_decode_tokens"] if is_decode else most)
        q_lens.append(int(rng.integers(0 if kind == "mixed" else 1, largest + 1)) if left else 0)
        left -= q_lens[-1]
    longest = rng.choice([50, 600, 1200], size=requests, p=[0.3, 0.5, 0.2])
    kv_lens = [q + int(rng.integers(0, longest[i])) for i, q in enumerate(q_lens)]
    if rng.random() < 0.3:
        kv_lens[0] = limits["max_kv_len"]
    return q_lens, kv_lens


def bounded_table(case, planned):
    """The case's page table with room for the planned lengths: pages of NaN beyond the exact."""
    spare = np.setdiff1d(np.arange(len(case.k_cache)), case.block_table)[0]
    columns = -(-int(planned.max(initial=0)) // case.page_size)
    table = np.full((len(planned), max(columns, case.block_table.shape[1])), spare, np.int32)
    for request, length in enumerate(case.kv_lens):
        used = -(-length // case.page_size)
        table[request, :used] = case.block_table[request, :used]
    return cupy.asarray(table)
