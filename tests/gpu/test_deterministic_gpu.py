"""Bits of a request alone and in random batches; bits of the same batch, twice."""

from functools import cache

import numpy as np
import pytest
from attention_case import Case, poisoned, to_gpu
from gpu_support import skip_without_hopper

import podrt

cupy = pytest.importorskip("cupy")

#: Prompts, chunks, decodes of one token and of several, with keys that are cut and not.
REQUESTS = [
    (1, 4000),
    (1, 17),
    (300, 900),
    (2, 333),
    (1, 8193),
    (5, 700),
    (700, 2100),
    (1, 129),
    (40, 5000),
    (17, 17),
    (0, 5),
    (1, 1024),
    (64, 1500),
    (130, 130),
    (3, 0),
    (1, 2048),
]
#: Scores differ by far more than the kernels' softmax tolerates: references are raised often.
FAR_APART = 0.4
#: Policy, head_dim, page_size, group. Groups of 6 and 7 do not fill a Hopper prefill tile.
LAYERS = [
    ("hopper", 128, 16, 4),
    ("hopper", 128, 16, 6),
    ("hopper", 64, None, 7),
    ("hopper-serial", 128, 16, 4),
    ("portable", 128, 16, 4),
    ("portable", 64, None, 7),
]
layers = pytest.mark.parametrize(("policy", "head_dim", "page_size", "group"), LAYERS)


@cache
def case_of(head_dim, page_size, group, sm_scale=FAR_APART):
    return Case(
        *map(list, zip(*REQUESTS, strict=True)),
        num_kv_heads=2,
        group=group,
        head_dim=head_dim,
        page_size=page_size,
        sm_scale=sm_scale,
    )


class Batches:
    """Batches of some requests of one case, in any order, over the same caches."""

    def __init__(self, policy, head_dim, page_size, group, **options):
        if policy.startswith("hopper"):
            skip_without_hopper()
        self.case = case = case_of(head_dim, page_size, group)
        self.attention = podrt.HybridAttention(**case.layer_arguments, policy=policy, **options)
        self.k, self.v = (to_gpu(cache) for cache in (case.k_cache, case.v_cache))

    def plan(self, requests):
        """Plan; return the batch's tensors."""
        case = self.case
        ends = case.qo_indptr
        rows = [case.q[ends[r] : ends[r + 1]] for r in requests]
        indptr = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        kv_lens = np.array([case.kv_lens[r] for r in requests], np.int32)
        k, v, table = self.k, self.v, {}
        if case.page_size is None:
            k, v = (cache.view(np.uint16)[requests].view(cache.dtype) for cache in (k, v))
        else:
            table = {"block_table": np.ascontiguousarray(case.block_table[requests])}
        self.attention.plan(indptr, kv_lens, **table)
        return to_gpu(np.concatenate(rows)), k, v

    def run(self, requests):
        """Return the bits of out and LSE of each request."""
        q, k, v = self.plan(requests)
        out, lse = poisoned(q.shape, q.dtype), poisoned(q.shape[:2], np.float32)
        self.attention.run(q, k, v, out=out, lse=lse)
        return self.by_request(requests, out, lse)

    def by_request(self, requests, out, lse):
        ends = np.cumsum([self.case.q_lens[r] for r in requests])[:-1]
        host = out.view(np.uint16).get(), lse.view(np.uint32).get()
        outs, lses = (np.split(array, ends) for array in host)
        return {r: (outs[i], lses[i]) for i, r in enumerate(requests)}


def assert_same(got, wanted, requests):
    for request in requests:
        for mine, other, name in zip(got[request], wanted[request], ("out", "lse"), strict=True):
            differ = np.unique(np.nonzero(mine != other)[0])
            assert not len(differ), f"{name} of request {request}: tokens {differ}"


def random_batches(count):
    rng = np.random.default_rng(7)
    for number in range(count):
        some = rng.permutation(len(REQUESTS))
        yield [int(r) for r in (some if number % 3 == 0 else some[: rng.integers(2, len(some))])]


@layers
def test_a_request_has_the_same_bits_alone_and_in_any_batch(policy, head_dim, page_size, group):
    batches = Batches(policy, head_dim, page_size, group, deterministic=True)
    alone = {}
    for request, (q_len, _) in enumerate(REQUESTS):
        if q_len:
            alone |= batches.run([request])
    for requests in random_batches(12):
        asked = [request for request in requests if request in alone]
        assert_same(batches.run(requests), alone, asked)


@pytest.mark.parametrize("policy", ["hopper", "portable"])
def test_on_fewer_sms_too(policy):
    whole, part = (
        Batches(policy, 128, 16, 4, deterministic=True, num_sms=sms) for sms in (None, 50)
    )
    for requests in random_batches(3):
        asked = [request for request in requests if REQUESTS[request][0]]
        assert_same(part.run(requests), whole.run(requests), asked)


@pytest.mark.parametrize("policy", ["hopper", "portable"])
def test_a_graph_has_the_bits_of_ordinary_runs(policy):
    ordinary = Batches(policy, 128, 16, 4, deterministic=True)
    reserved = Batches(policy, 128, 16, 4, deterministic=True)
    tokens = sum(q_len for q_len, _ in REQUESTS)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        reserved.attention.reserve(len(REQUESTS), tokens, 8193, stream=stream)
        q = poisoned((tokens, 8, 128), reserved.case.q.dtype)
        out, lse = poisoned(q.shape, q.dtype), poisoned(q.shape[:2], np.float32)
        stream.synchronize()
        stream.begin_capture()
        reserved.attention.run(q, reserved.k, reserved.v, out=out, lse=lse, stream=stream)
        graph = stream.end_capture()
        for requests in random_batches(4):
            own, *_ = reserved.plan(requests)
            q.view(np.uint16)[: len(own)] = own.view(np.uint16)
            graph.launch(stream)
            stream.synchronize()
            asked = [request for request in requests if REQUESTS[request][0]]
            count = len(own)
            got = reserved.by_request(requests, out[:count], lse[:count])
            assert_same(got, ordinary.run(requests), asked)


@pytest.mark.parametrize(("policy", "group"), [("hopper", 6), ("portable", 4)])
def test_the_same_batch_has_the_same_bits_twice(policy, group):
    """Without the mode, whatever has run in between, and whoever is the last to arrive."""
    batches, between = (Batches(policy, 128, 16, group) for _ in range(2))
    for requests in random_batches(4):
        asked = [request for request in requests if REQUESTS[request][0]]
        first = batches.run(requests)
        for others in random_batches(3):
            between.run(others)
            assert_same(batches.run(requests), first, asked)


@pytest.mark.parametrize("policy", ["hopper", "portable"])
def test_results_are_right(policy):
    if policy == "hopper":
        skip_without_hopper()
    case = case_of(128, 16, 4, sm_scale=None)
    attention = podrt.HybridAttention(**case.layer_arguments, policy=policy, deterministic=True)
    attention.plan(*case.lengths, block_table=case.block_table)
    tensors = [to_gpu(array) for array in (case.q, case.k_cache, case.v_cache)]
    out, lse = attention.run(*tensors, return_lse=True)
    case.check(out.get(), lse.get())
