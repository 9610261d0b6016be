"""One graph, any batch: replays after new plans of a reserved object."""

import numpy as np
import pytest
from attention_case import poisoned
from gpu_support import POISON, inputs_on_gpu

cupy = pytest.importorskip("cupy")

from graph_server import LIMITS, SIZES, Server, bounded_table, random_lengths  # noqa: E402

KINDS = ("mixed", "decode", "prefill", "empty")
STEPS = 20


@pytest.fixture
def server(family):
    return Server(family)


def random_case(server, rng, kind, size):
    lengths = random_lengths(rng, kind, size, server.limits)
    return server.case(*lengths, seed=int(rng.integers(2**31)))


@pytest.mark.parametrize("table_on", ["gpu", "host"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_replays_compute_the_planned_batch(family, dtype, head_dim, table_on):
    server = Server(family, {"dtype": dtype, "head_dim": head_dim}, table_on=table_on)
    for size in SIZES:
        server.capture(size)
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        size, kind = SIZES[step % 2], KINDS[rng.integers(len(KINDS))]
        server.step(random_case(server, rng, kind, size), size)


@pytest.mark.parametrize("first", KINDS)
def test_whatever_is_planned_at_capture(server, first):
    rng = np.random.default_rng(2)
    size = SIZES[0]
    server.plan(random_case(server, rng, first, size))
    server.capture(size)
    for kind in KINDS:
        server.step(random_case(server, rng, kind, size), size)


def test_graphs_of_decodes_alone(server):
    """They serve decodes of one token and of as many as were reserved for."""
    rng, size = np.random.default_rng(3), SIZES[0]
    assert [server.attention.are_decodes(n) for n in (1, 2, 256)] == [True, True, False]
    server.capture(size, decodes_only=True)
    server.capture(size)
    for step in range(12):
        case = random_case(server, rng, "empty" if step % 5 == 4 else "decode", size)
        server.step(case, size, decodes_only=step % 3 != 2)


def test_ordinary_runs_in_between(server):
    rng, size = np.random.default_rng(4), SIZES[1]
    server.capture(size)
    for kind in ("mixed", "decode", "prefill", "mixed"):
        case, other = (random_case(server, rng, kind, size) for _ in range(2))
        server.step(case, size)
        with server.stream:
            server.plan(other)
            inputs, out = inputs_on_gpu(other), poisoned(other.q.shape, other.q.dtype)
            server.attention.run(*inputs, out=out, stream=server.stream)
            other.check(out.get())
        server.step(case, size)


def test_a_plan_serves_several_replays_and_sizes(server):
    for size in SIZES:
        server.capture(size)
    case = random_case(server, np.random.default_rng(5), "mixed", SIZES[0])
    server.step(case, SIZES[0])
    for size in (*SIZES, *SIZES):
        with server.stream:
            server.out.view(np.uint16).fill(POISON)
            server.lse.fill(np.nan)
        server.check(case, *server.replay(size))


def test_many_plans_before_one_replay(server):
    """The last one counts; the copies of none may be overwritten before they are done."""
    rng, size = np.random.default_rng(6), SIZES[0]
    server.capture(size)
    cases = [random_case(server, rng, KINDS[i % 3], size) for i in range(12)]
    for case in cases:
        server.plan(case)
    server.step(cases[-1], size)


@pytest.mark.parametrize("decodes_only", [True, False])
def test_lengths_that_only_the_device_knows(server, decodes_only):
    """Planned is an upper bound; the kernel reads the lengths by address at each replay."""
    rng, size = np.random.default_rng(7), SIZES[0]
    server.capture(size, decodes_only=decodes_only)
    for further in (1, 17, 200, 1000):
        kind = "decode" if decodes_only else "mixed"
        q_lens, kv_lens = random_lengths(rng, kind, size)
        kv_lens = [min(n, LIMITS["max_kv_len"] - further) for n in kv_lens]
        case = server.case(q_lens, kv_lens, seed=further)
        planned = np.array(kv_lens, np.int32) + rng.integers(0, further + 1, len(kv_lens))
        table = bounded_table(case, planned)
        exact = cupy.asarray(planned.astype(np.int32))
        with server.stream:
            server.load(case)
            server.attention.plan(
                case.qo_indptr,
                planned.astype(np.int32),
                block_table=table,
                device_kv_lens=exact,
                stream=server.stream,
            )
            exact[:] = cupy.asarray(case.lengths[1])  # known only after the plan
        server.check(case, *server.replay(size, decodes_only=decodes_only))


def test_device_lengths_beyond_the_planned_ones_do_not_count(server):
    case = server.case([1, 30, 2], [700, 300, 90], seed=8)
    server.capture(SIZES[0])
    with server.stream:
        longer = cupy.asarray(case.lengths[1] + 500)
    server.step(case, SIZES[0], device_kv_lens=longer)


def test_device_lengths_in_ordinary_runs(server):
    case = server.case([1, 30, 2], [700, 300, 90], seed=9)
    planned = np.array([1000, 301, 130], np.int32)
    with server.stream:
        table, exact = bounded_table(case, planned), cupy.asarray(case.lengths[1])
        inputs, out = inputs_on_gpu(case), poisoned(case.q.shape, case.q.dtype)
        server.attention.plan(
            case.qo_indptr, planned, block_table=table, device_kv_lens=exact, stream=server.stream
        )
        server.attention.run(*inputs, out=out, stream=server.stream)
        case.check(out.get())


@pytest.mark.parametrize(
    ("q_lens", "kv_lens", "limit"),
    [
        ([1] * (LIMITS["max_requests"] + 1), [40] * (LIMITS["max_requests"] + 1), "max_requests"),
        ([LIMITS["max_tokens"], 1], [300, 40], "max_tokens"),
        ([1], [LIMITS["max_kv_len"] + 1], "max_kv_len"),
    ],
)
def test_a_batch_beyond_the_limits_changes_nothing(server, q_lens, kv_lens, limit):
    case = server.case([1, 20, 2], [900, 100, 40], seed=10)
    server.capture(SIZES[0])
    server.step(case, SIZES[0])
    too_much = server.case(q_lens, kv_lens, seed=11)
    with pytest.raises(ValueError, match=limit):
        server.plan(too_much)
    with server.stream:
        server.out.view(np.uint16).fill(POISON)
        server.lse.fill(np.nan)
    server.check(case, *server.replay(SIZES[0]))
    server.step(case, SIZES[0])


@pytest.mark.parametrize("policy", ["auto", "portable"])
def test_objects_of_a_stream_share_one_workspace(policy):
    """Their items are their own: replays of either compute its own batch."""
    attention = Server(policy).attention
    size_bytes = attention.workspace_bytes(**LIMITS)
    workspace = cupy.zeros(size_bytes, np.uint8)
    stream = cupy.cuda.Stream(non_blocking=True)
    one, other = (Server(policy, workspace=workspace, stream=stream) for _ in range(2))
    rng, size = np.random.default_rng(12), SIZES[0]
    for server in (one, other):
        server.capture(size)
    for kind in ("mixed", "decode", "mixed"):
        cases = [random_case(server, rng, kind, size) for server in (one, other)]
        for server, case in zip((one, other), cases, strict=True):
            with stream:
                server.load(case)
            server.plan(case)
        for server, case in zip((other, one, other), (cases[1], *cases), strict=True):
            server.check(case, *server.replay(size))


def test_a_workspace_that_is_too_small(family):
    limits = dict(LIMITS)
    size_bytes = Server(family).attention.workspace_bytes(**limits)
    with pytest.raises(ValueError, match="workspace"):
        Server(family, workspace=cupy.zeros(size_bytes - 1, np.uint8))


def test_long_keys_are_split_within_the_bound(family):
    """A reserved object cuts coarser rather than run out of room."""
    limits = {"max_requests": 8, "max_tokens": 64, "max_kv_len": 20000}
    server = Server(family, {"num_kv_heads": 1}, limits=limits)
    server.capture(64)
    for q_lens, kv_lens in (
        ([1], [20000]),
        ([1] * 8, [3900] * 8),
        ([40, 1, 1], [20000, 4000, 1]),
        ([64], [20000]),
    ):
        server.step(server.case(q_lens, kv_lens, seed=len(q_lens)), 64)


def test_torch_captures_and_replays(family):
    torch = pytest.importorskip("torch")
    from gpu_support import from_torch, to_torch

    from podrt import HybridAttention

    server = Server(family)  # makes cases
    cases = [server.case([1, 20, 2], [900, 100, 40], seed=1), server.case([1] * 9, [300] * 9)]
    cases.append(server.case([60], [60], seed=2))
    attention = HybridAttention(**cases[0].layer_arguments, policy=family)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    pages = max(len(case.k_cache) for case in cases)
    with torch.cuda.stream(stream):
        attention.reserve(**LIMITS, stream=stream)
        heads, dtype = cases[0].q.shape[1:], cases[0].q.dtype
        q = to_torch(np.zeros((64, *heads), dtype))
        cache = np.zeros((pages, *cases[0].k_cache.shape[1:]), dtype)
        k, v = to_torch(cache), to_torch(cache)
        out = torch.empty_like(q)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        attention.run(q, k, v, out=out)
    with torch.cuda.stream(stream):
        for case in cases:
            for buffer, array in ((q, case.q), (k, case.k_cache), (v, case.v_cache)):
                buffer[: len(array)] = to_torch(array)
            out.fill_(torch.nan)
            table = torch.from_numpy(case.block_table).cuda()
            attention.plan(*case.lengths, block_table=table, stream=stream)
            graph.replay()
            case.check(from_torch(out[: len(case.q)], case.q.dtype))
            assert out[len(case.q) :].isnan().all()
