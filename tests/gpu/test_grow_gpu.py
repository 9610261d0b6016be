"""Decodes of which every step has a key more than the last, mostly without a plan."""

import numpy as np
import pytest
from attention_case import NO_PAGE, poisoned, to_gpu

from podrt import HybridAttention

cupy = pytest.importorskip("cupy")

from graph_server import Server  # noqa: E402

SIZE = 64
STEPS = 36
#: Keys of the first step. The longest begins a span.
FEW = [480, 33, 97, 300]
MANY = [2976, 35, 1200, 64, 17, 2900, 511]


class Table:
    """A block table at one place, of as many columns at every step."""

    def __init__(self, case, more_keys, on_gpu):
        width = -(-(max(case.kv_lens) + more_keys) // case.page_size)
        module = cupy if on_gpu else np
        self.values = module.zeros((len(case.kv_lens), width), np.int32)

    def take(self, case):
        """Take the pages of a step; return what is new by entry."""
        before = self.values.copy()
        columns = min(case.block_table.shape[1], self.values.shape[1])
        pages = case.block_table[:, :columns]
        if not self.on_gpu:  # those that are nobody's would be refused once a run has checked them
            pages = np.where(pages == NO_PAGE, 0, pages)
        self.values[:, :columns] = cupy.asarray(pages) if self.on_gpu else pages
        if self.on_gpu:
            return None
        changed = np.flatnonzero(before != self.values).tolist()
        return {entry: int(self.values.flat[entry]) for entry in changed}

    @property
    def on_gpu(self):
        return not isinstance(self.values, np.ndarray)


def case_of(server, kv_lens, step):
    return server.case([1] * len(kv_lens), [length + step for length in kv_lens], seed=step)


@pytest.mark.parametrize("decodes_only", [False, True])
@pytest.mark.parametrize(("kv_lens", "on_gpu"), [(FEW, True), (FEW, False), (MANY, True)])
def test_replays_of_steps_that_grow(family, kv_lens, on_gpu, decodes_only):
    server, fresh = (Server(family, limits=_limits(STEPS + max(kv_lens))) for _ in range(2))
    for each in (server, fresh):
        each.capture(SIZE, decodes_only=decodes_only)
    table, grown = Table(case_of(server, kv_lens, 0), STEPS, on_gpu), 0
    for step in range(STEPS):
        case = case_of(server, kv_lens, step)
        with server.stream:
            server.load(case)
            new_pages = table.take(case)
        if step and server.attention.grow(new_pages=new_pages, stream=server.stream):
            grown += 1
        else:
            server.attention.plan(*case.lengths, block_table=table.values, stream=server.stream)
        out, lse = server.replay(SIZE, decodes_only=decodes_only)
        server.check(case, out, lse)
        if step % 5 == 4:  # to the bit what a plan gives
            with fresh.stream:
                fresh.load(case)
            fresh.attention.plan(*case.lengths, block_table=table.values, stream=fresh.stream)
            again, lse_again = fresh.replay(SIZE, decodes_only=decodes_only)
            assert (out.view(np.uint16) == again.view(np.uint16)).all()
            np.testing.assert_array_equal(lse, lse_again)
    assert grown >= STEPS - 6


@pytest.mark.parametrize("on_gpu", [True, False])
def test_runs_of_steps_that_grow(family, on_gpu):
    server = Server(family, limits=_limits(600))
    attention = HybridAttention(**case_of(server, FEW, 0).layer_arguments, policy=family)
    stream, grown = cupy.cuda.Stream(non_blocking=True), 0
    table = Table(case_of(server, FEW, 0), STEPS, on_gpu)
    most_pages = sum(-(-(length + STEPS) // server.case([], []).page_size) for length in FEW) + 5
    with stream:
        for step in range(STEPS):
            case = case_of(server, FEW, step)
            new_pages = table.take(case)
            if step and attention.grow(new_pages=new_pages, stream=stream):
                grown += 1
            else:
                attention.plan(*case.lengths, block_table=table.values, stream=stream)
            caches = [with_pages(cache, most_pages) for cache in (case.k_cache, case.v_cache)]
            out = poisoned(case.out_shape, case.q.dtype)
            attention.run(to_gpu(case.q), *caches, out=out)
            case.check(out.get())
    assert grown >= STEPS - 6


def with_pages(cache, most_pages):
    """Return a cache on the GPU of as many pages at every step."""
    larger = poisoned((most_pages, *cache.shape[1:]), cache.dtype)
    larger.view(np.uint16)[: len(cache)] = cupy.asarray(cache.view(np.uint16))
    return larger


def _limits(max_kv_len):
    return {
        "max_requests": 8,
        "max_tokens": SIZE,
        "max_kv_len": max_kv_len,
        "max_decode_tokens": 2,
    }
