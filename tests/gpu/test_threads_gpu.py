"""Threads: the first CUDA call of one, runs side by side, plans beside runs."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from attention_case import Case, poisoned, run
from gpu_support import bits, from_torch, inputs_on_gpu, skip_with_one_gpu, to_torch

from podrt import HybridAttention

cupy = pytest.importorskip("cupy")

THREADS = 4
ROUNDS = 40
LIMIT_S = 120
#: Long keys and few requests: both sides are split and merged.
LENGTHS = [1, 40, 2, 1], [9000, 3000, 700, 16]


@pytest.fixture(params=["auto", "portable"])
def planned(request):
    case = Case(*LENGTHS, seed=3)
    attention = HybridAttention(**case.layer_arguments, policy=request.param)
    table = cupy.asarray(case.block_table)
    attention.plan(*case.lengths, block_table=table)
    inputs = inputs_on_gpu(case)
    cupy.cuda.Device().synchronize()
    return case, attention, inputs


def in_fresh_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(LIMIT_S)


def in_threads(function):
    with ThreadPoolExecutor(THREADS) as pool:
        return [job.result(LIMIT_S) for job in [pool.submit(function) for _ in range(THREADS)]]


@pytest.mark.parametrize("with_out", [True, False])
def test_first_call_of_a_thread_is_run(planned, with_out):
    case, attention, inputs = planned
    out = poisoned(case.q.shape, case.q.dtype) if with_out else None
    cupy.cuda.Device().synchronize()
    case.check(in_fresh_thread(lambda: attention.run(*inputs, out=out)).get())


@pytest.mark.parametrize("with_out", [True, False])
@pytest.mark.parametrize("device", [0, 1])
def test_first_call_of_a_thread_is_run_with_torch_tensors(device, with_out):
    torch = pytest.importorskip("torch")
    if device:
        skip_with_one_gpu()
    case = Case(*LENGTHS, seed=4)
    place = f"cuda:{device}"
    attention = HybridAttention(**case.layer_arguments, device=device)
    attention.plan(*case.lengths, block_table=torch.from_numpy(case.block_table).to(place))
    inputs = [to_torch(array, place) for array in (case.q, case.k_cache, case.v_cache)]
    out = torch.full_like(inputs[0], torch.nan) if with_out else None
    torch.cuda.synchronize(device)
    result = in_fresh_thread(lambda: attention.run(*inputs, out=out))
    assert result.device.index == device
    case.check(from_torch(result, case.q.dtype))


def test_first_call_of_a_thread_on_another_device():
    skip_with_one_gpu()
    case = Case(*LENGTHS, seed=5)
    with cupy.cuda.Device(1):
        inputs = inputs_on_gpu(case)
        attention = HybridAttention(**case.layer_arguments, device=1)
        attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
        cupy.cuda.Device().synchronize()
    out = in_fresh_thread(lambda: attention.run(*inputs))
    assert out.device.id == 1
    case.check(out.get())


def test_runs_of_several_threads_on_streams_of_their_own(planned):
    case, attention, inputs = planned
    expected = bits(attention.run(*inputs))

    def work():
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            out = poisoned(case.q.shape, case.q.dtype)
            for _ in range(ROUNDS):
                out.view(np.uint16).fill(0x7FFF)
                attention.run(*inputs, out=out, stream=stream)
                assert (bits(out) == expected).all()

    in_threads(work)
    case.check(expected.view(case.q.dtype))


def test_runs_of_several_threads_on_one_stream(planned):
    _case, attention, inputs = planned
    expected = bits(attention.run(*inputs))
    stream = cupy.cuda.Stream(non_blocking=True)

    def work():
        with stream:
            return [bits(attention.run(*inputs, stream=stream)) for _ in range(ROUNDS)]

    for results in in_threads(work):
        assert all((got == expected).all() for got in results)


def test_per_thread_default_streams(planned):
    """Their handle is 2 in every thread, and they are as many streams."""
    case, attention, inputs = planned
    expected = bits(attention.run(*inputs))

    def work():
        out = poisoned(case.q.shape, case.q.dtype)
        cupy.cuda.Stream.null.synchronize()
        for _ in range(ROUNDS):
            attention.run(*inputs, out=out, stream=2)
            cupy.cuda.Stream.ptds.synchronize()
            assert (bits(out) == expected).all()

    in_threads(work)


@pytest.mark.parametrize("one_stream", [True, False])
@pytest.mark.parametrize("policy", ["auto", "portable"])
def test_plans_beside_runs(policy, one_stream):
    """Every run is of one batch or of the other, whole."""
    one = Case([1, 40, 2, 1], [3000, 9000, 700, 160], seed=6)
    other = Case([2, 1, 40, 1], one.kv_lens, seed=6)
    for name in ("q", "k_cache", "v_cache", "block_table"):
        setattr(other, name, getattr(one, name))
    attention = HybridAttention(**one.layer_arguments, policy=policy)
    allowed = [bits(run(case, attention, strided=False)[0]) for case in (one, other)]
    inputs, table = inputs_on_gpu(one), cupy.asarray(one.block_table)
    shared = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()

    def plan():
        for turn in range(10 * ROUNDS):
            lengths = (one, other)[turn % 2].lengths
            attention.plan(*lengths, block_table=table, stream=shared)

    def work():
        stream = shared if one_stream else cupy.cuda.Stream(non_blocking=True)
        with stream:
            for _ in range(ROUNDS):
                got = bits(attention.run(*inputs, stream=stream))
                assert any((got == expected).all() for expected in allowed)

    with ThreadPoolExecutor(THREADS) as pool:
        for job in [pool.submit(f) for f in (plan, work, work)]:
            job.result(LIMIT_S)
